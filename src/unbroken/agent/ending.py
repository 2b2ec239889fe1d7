"""What comes after a command's end: clearing up, asking the journal, and the last entry of the attempt."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeVar

from unbroken.agent.admission import describe_rescue
from unbroken.agent.events import Woken
from unbroken.agent.journal_facts import JournalFacts
from unbroken.agent.outcome import Decision, Facts, may_pass
from unbroken.agent.process_tree import Tree
from unbroken.agent.session import Session
from unbroken.agent.watch import TICK, Surroundings, Watch
from unbroken.errors import FencedError, UnbrokenError
from unbroken.journal.events import AttemptEnded
from unbroken.journal.state import NO_PROGRESS

T = TypeVar("T")

_SETTLE_SECONDS = 2.0
_LAST_WORD_SECONDS = 10.0


class Ending:
    """The end of one start. Signals and notices are still heard meanwhile, and no wait outlasts the deadline.

    Args:
        watch: what followed the start.
    """

    def __init__(self, around: Surroundings, tree: Tree, session: Session, watch: Watch) -> None:
        self._around = around
        self._tree = tree
        self._session = session
        self._watch = watch

    def settle(self) -> None:
        """End what the command left behind, take in what was still on its way, and make durable what was announced."""
        survivors = self._tree.clear(
            self._around.interruption.bounded(self._around.options.leftover_grace, by_kill=True)
        )
        if survivors:
            self._around.display.say(f"processes {survivors} do not die, even of SIGKILL")
        clock, interruption = self._around.clock, self._around.interruption
        deadline = clock.monotonic() + _SETTLE_SECONDS
        while self._session.connected() and interruption.bounded(deadline - clock.monotonic(), by_kill=True) > 0:
            self._watch.turn(0.05)
        self._watch.turn(0)
        self._rescue()

    def _rescue(self) -> None:
        """Wait for what the trainers announced and did not live to see durable."""
        around, clock = self._around, self._around.clock
        left = self._session.unsaved()
        if not left:
            return
        around.display.say(describe_rescue(left[-1]))
        self._watch.enter(f"making step {left[-1]} durable")
        deadline = clock.monotonic() + around.options.upload_patience
        while left := self._session.unsaved():
            seconds = around.interruption.time_to_upload(deadline - clock.monotonic())
            if seconds <= 0:
                around.display.say(f"step {left[-1]} could not be made durable in time")
                self._session.abandon()
                break
            self._watch.turn(min(seconds, TICK))
        self._watch.turn(0)

    def facts(self, *, restarts: int = 0, fruitless: int = 0, trains: bool = False) -> Facts:
        """What is known about the end; asks the journal.

        Args:
            restarts: restarts in place so far.
            fruitless: starts by this agent, just before this one and in a row, that committed nothing.
            trains: whether an earlier start opened the run, or its URI was given.
        """
        known, journal = self._ask_journal()
        heard = self._session.heard()
        progress = heard.progress
        kept_out = heard.refused is not None and may_pass(heard.refused.error, heard.refused.kind)
        return Facts(
            returncode=self._tree.returncode,
            said_hello=heard.hellos > 0,
            trains=trains,
            journal_known=known,
            finished_step=journal.finished_step,
            finished_here=journal.finished_here,
            committed=journal.committed,
            durable_step=journal.durable_step,
            fenced=heard.fenced or (journal.fenced and heard.world_size == 1),
            replaced=journal.fenced and heard.world_size > 1,
            world_size=heard.world_size,
            leads=heard.leads,
            fruitless=0 if journal.committed else fruitless + (not kept_out),
            without_progress=journal.without_progress,
            notice=self._around.interruption.announced,
            byes=heard.byes,
            lost=heard.lost,
            refused=heard.refused,
            restarts=restarts,
            step=progress.step if progress else -1,
            until=progress.until if progress else -1,
        )

    def conclude(self, decision: Decision, facts: Facts) -> Decision:
        """Write the end to the journal, where rank 0 was here, and say it.

        The decision changes where the journal says that we are fenced.
        """
        claim = self._session.claim
        refused = facts.refused is not None and facts.refused.kind == NO_PROGRESS  # written already
        ours = facts.leads and not (facts.fenced or facts.replaced)
        if claim is not None and facts.journal_known and ours and not refused:
            future = self._session.record(AttemptEnded(decision.cause, facts.step, decision.text))
            if future is not None and not self._await(future, _LAST_WORD_SECONDS):
                self._around.display.say("the end of the attempt could not be written to the journal in time")
            if self._session.heard().fenced:
                decision = Decision(FencedError.exit_code, "failed", "another attempt owns this run")
        attempt = f"attempt {claim.lease.attempt}" if claim is not None else "the command"
        self._around.display.say(f"{attempt} ended: {decision.text}")
        return decision

    def _ask_journal(self) -> tuple[bool, JournalFacts]:
        future = self._session.ask_journal(self._around.options.store_patience)
        if future is None:
            return True, JournalFacts()
        self._watch.enter("reading the journal")
        if self._await(future, self._around.options.store_patience):
            try:
                return True, future.result()
            except FencedError:
                return True, JournalFacts(fenced=True)
            except UnbrokenError as error:
                self._around.display.say(f"the journal cannot be read: {error}")
                return False, self._session.last_known()
        self._around.display.say("the store does not answer")
        return False, self._session.last_known()

    def _await(self, future: Future[T], seconds: float) -> bool:
        """Go on with the main loop until the future is done: False after ``seconds`` or at the deadline."""
        clock = self._around.clock
        deadline = clock.monotonic() + seconds
        future.add_done_callback(lambda _: self._around.mailbox.post(Woken()))
        while not future.done():
            left = self._around.interruption.bounded(deadline - clock.monotonic())
            if left <= 0:
                return False
            self._watch.turn(min(left, TICK))
        return True
