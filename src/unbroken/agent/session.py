"""One start of the command: its trainers, what they said, and the attempt they work on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from unbroken.agent.claims import Claim, Claims
from unbroken.agent.events import Admitted, Departed, Event, Fenced, ThreadFailed, Told, Trouble
from unbroken.agent.outcome import may_pass
from unbroken.agent.recorder import Recorder
from unbroken.agent.server import LinkServer
from unbroken.clock import Clock, format_duration
from unbroken.errors import ConfigError, FencedError, StoreError, UnbrokenError
from unbroken.journal import Event as JournalEvent
from unbroken.journal.events import AttemptEnded
from unbroken.link.channel import Channel, ChannelError
from unbroken.link.messages import Advice, Bye, Committed, FromAgent, Hello, Message, Refused, Stop, Stopping, Welcome
from unbroken.link.progress import Progress, ProgressPage

_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 15.0
_DEPARTURE_SECONDS = 0.5
"""For how long a new trainer waits for the thread of one that is gone to notice it."""
JOIN_SECONDS = 2.0
"""For how long a thread is waited for, where no deadline comes sooner."""


@dataclass
class Heard:
    """What the trainers of one start have said. Copied for readers by :meth:`Session.heard`."""

    hellos: int = 0
    byes: tuple[Bye, ...] = ()
    refused: Refused | None = None
    fenced: bool = False
    committed_step: int = -1
    """Highest step that trainers of this start called durable; -1: none."""
    stopping: int = -1
    """The step that is being saved before leaving; -1: none."""
    progress: Progress | None = None
    """The newest reading of the trainers' progress pages."""


@dataclass(frozen=True)
class JournalFacts:
    """What the journal says when a start is over."""

    finished_step: int = -1
    finished_here: bool = False
    """Whether the newest attempt of this start wrote that the run is complete."""
    durable_step: int = -1
    committed: bool = False
    fenced: bool = False
    without_progress: int = 0


@dataclass
class _Member:
    hello: Hello
    page: ProgressPage | None = field(default=None)
    parted: bool = False
    """Whether it has said good-bye: its connection may stay open, held by a process that it forked."""


class Session:
    """Serves trainers at ``socket`` from the constructor to :meth:`close`. All methods are safe from any thread.

    Args:
        claims: gives out the attempts; nobody else may use it while the session is open.
        post: told what happens, in whichever thread it happens.
        patience: for how many seconds a store that fails is asked again while a trainer waits for its attempt.
    """

    def __init__(
        self, socket: Path, claims: Claims, post: Callable[[Event], None], clock: Clock, *, patience: float = 0.0
    ) -> None:
        self._claims = claims
        self._recipient = post
        self._posting = threading.Lock()
        self._closed = False
        """Nothing is posted, and nothing is begun in the store, by threads that outlive the session."""
        self._clock = clock
        self._patience = patience
        self._hurry = threading.Event()
        """Set where the store is not to be waited for any more."""
        self._opening = threading.Lock()  # held while the store is asked; never needed to send a stop
        self._lock = threading.RLock()
        self._departure = threading.Condition(self._lock)
        self._members: dict[Channel, _Member] = {}
        self._heard = Heard()
        self._greeting = 0
        self._stop: Stop | None = None
        self._recorder = Recorder()
        self._server = LinkServer(socket, self._serve, lambda error: self._post(ThreadFailed(error)))

    def close(self, timeout: float = JOIN_SECONDS) -> None:
        """End the connections and the threads; one that hangs in the store is left behind after ``timeout`` seconds.

        What is left behind claims nothing and posts nothing: it would fence, or end, whatever comes after.
        """
        self._claims.close()
        self._hurry.set()
        self._server.close(timeout)
        self._recorder.close(timeout)
        with self._posting:
            self._closed = True

    @property
    def claim(self) -> Claim | None:
        """The attempt that the trainers work on."""
        return self._claims.current

    def heard(self) -> Heard:
        """What was said so far, with a fresh reading of the progress pages."""
        with self._lock:
            self._read_progress()
            return replace(self._heard)

    def trainers(self) -> list[Hello]:
        """The trainers that are connected, by rank."""
        with self._lock:
            return sorted((member.hello for member in self._members.values()), key=lambda hello: hello.rank)

    def connected(self) -> bool:
        """Whether any trainer that has not said good-bye is connected, or one is being admitted."""
        with self._lock:
            return self._expects_more()

    def stop(self, stop: Stop) -> bool:
        """Tell all trainers, those to come too, to save and leave; False where none is connected yet."""
        with self._lock:
            self._stop = stop
            self._hurry.set()
            self._send_all(stop)
            return self._expects_more()

    def advise(self, advice: Advice) -> None:
        """Tell the connected trainers that an interruption has become likely."""
        with self._lock:
            self._send_all(advice)

    def record(self, event: JournalEvent) -> Future[None] | None:
        """Write to the journal in the background; None where there is no attempt to write for.

        Trouble is posted; it is no reason to stop training.
        """
        claim = self.claim
        return None if claim is None else self._recorder.submit(lambda: self._append(claim, event))

    def ask_journal(self, patience: float) -> Future[JournalFacts] | None:
        """Read the journal again; asks a store that fails for ``patience`` seconds. None where there is no attempt."""
        claim = self.claim
        return None if claim is None else self._recorder.submit(lambda: self._read_journal(claim, patience))

    def last_known(self) -> JournalFacts:
        """The same without asking the store: the journal as it was last read, and what the trainers said since."""
        claim, told = self.claim, self.heard().committed_step
        facts = JournalFacts() if claim is None else self._journal_facts(claim)
        return replace(facts, durable_step=max(facts.durable_step, told), committed=facts.committed or told >= 0)

    def _serve(self, channel: Channel) -> None:
        messages = channel.messages()
        try:
            hello = next(messages, None)
            if not isinstance(hello, Hello) or not self._greet(channel, hello):
                return
            for message in messages:
                self._listen(channel, hello.rank, message)
        except ChannelError as error:
            self._post(Trouble(str(error)))
        finally:
            self._part(channel)

    def _greet(self, channel: Channel, hello: Hello) -> bool:
        with self._lock:
            self._greeting += 1
            self._heard.hellos += 1
        try:
            with self._opening:
                answer, first = self._answer(hello)
                return self._admit(channel, hello, answer, first)
        finally:
            with self._lock:
                self._greeting -= 1

    def _answer(self, hello: Hello) -> tuple[Welcome | Refused, bool]:
        try:
            self._claims.check(hello)
            self._demand_vacancy(hello)
            claim, first = self._claims.current, False
            if claim is None or not self._live():
                claim, first = self._begin(hello), True
        except UnbrokenError as error:
            return Refused(type(error).__name__, error.message, error.kind, error.hint), False
        return Welcome(claim.lease.attempt, claim.lease.claim), first

    def _begin(self, hello: Hello) -> Claim:
        """Give out an attempt; a store that fails is asked again for as long as there is patience."""
        before, pause = self._claims.current, _RETRY_SECONDS
        deadline = self._clock.monotonic() + self._patience
        while True:
            try:
                if before is not None:
                    self._close_attempt(before)
                    before = None
                return self._claims.begin(hello)
            except StoreError as error:
                left = deadline - self._clock.monotonic()
                if left <= 0 or not may_pass(type(error).__name__, error.kind) or self._hurry.is_set():
                    raise
                self._post(Trouble(f"no attempt yet, asking again for {format_duration(left)}: {error.message}"))
                if self._clock.wait(self._hurry, min(pause, left)):
                    raise
                pause = min(2 * pause, _LONGEST_RETRY_SECONDS)

    def _demand_vacancy(self, hello: Hello) -> None:
        """Refuse a second trainer of one rank: both would train, and commit, as the same attempt.

        Raises:
            ConfigError: one of this rank is connected, and stays.
        """
        with self._departure:
            if self._departure.wait_for(lambda: self._holder(hello.rank) is None, _DEPARTURE_SECONDS):
                return
            holder = self._holder(hello.rank)
        raise ConfigError(
            f"process {hello.pid} opens {hello.uri} as rank {hello.rank} of {hello.world_size}, and process "
            f"{holder.pid if holder else 0} of the same command trains it as that rank",
            kind="second-trainer",
            hint="Start one trainer below each unbroken run; guard a script that spawns processes with "
            'if __name__ == "__main__"',
        )

    def _admit(self, channel: Channel, hello: Hello, answer: Welcome | Refused, first: bool) -> bool:
        with self._lock:
            if isinstance(answer, Refused):
                self._heard.refused = self._heard.refused or answer
            else:
                if first:
                    self._heard = replace(self._heard, byes=(), refused=None, stopping=-1, progress=None)
                self._members[channel] = _Member(hello)
            channel.send(answer)
            if self._stop is not None and isinstance(answer, Welcome):
                channel.send(self._stop)
        if isinstance(answer, Refused):
            return False
        self._post(Admitted(hello, answer.attempt, first))
        return True

    def _close_attempt(self, claim: Claim) -> None:
        """Write the end of an attempt whose trainers are gone while the command goes on with new ones."""
        heard = self.heard()
        outcome = heard.byes[0].outcome if heard.byes else "crashed"
        step = heard.progress.step if heard.progress else -1
        claim.append(AttemptEnded(outcome, step, "the command went on with another attempt"))

    def _listen(self, channel: Channel, rank: int, message: Message) -> None:
        if isinstance(message, Hello | Welcome | Refused | Stop | Advice):
            raise ChannelError(f"rank {rank} sent a {type(message).__name__} out of turn", kind="protocol")
        with self._lock:
            match message:
                case Bye():
                    self._read_progress()
                    self._heard.byes += (message,)
                    self._members[channel].parted = True
                    self._departure.notify_all()
                case Committed(step=step):
                    self._heard.committed_step = max(self._heard.committed_step, step)
                case Stopping(step=step):
                    self._heard.stopping = max(self._heard.stopping, step)
        self._post(Told(rank, message))

    def _part(self, channel: Channel) -> None:
        with self._lock:
            self._read_progress()
            member = self._members.pop(channel, None)
            self._departure.notify_all()
            if member is not None and member.page is not None:
                member.page.close()
        if member is not None:
            self._post(Departed(member.hello.rank))

    def _live(self) -> list[Hello]:
        """The trainers that have not said good-bye."""
        with self._lock:
            return [member.hello for member in self._members.values() if not member.parted]

    def _holder(self, rank: int) -> Hello | None:
        return next((hello for hello in self._live() if hello.rank == rank), None)

    def _expects_more(self) -> bool:
        return bool(self._live()) or self._greeting > 0

    def _read_progress(self) -> None:
        """Read the pages anew. Of several, the most steps count, never the latest moment: a clock may be set back."""
        readings = []
        for member in self._members.values():
            if member.parted:
                continue
            if member.page is None and member.hello.progress:
                member.page = _open_page(Path(member.hello.progress))
            reading = member.page.read() if member.page is not None else None
            if reading is not None:
                readings.append(reading)
        if readings:
            self._heard.progress = max(readings, key=lambda reading: reading.step)

    def _send_all(self, message: FromAgent) -> None:
        for channel in self._members:
            try:
                channel.send(message)
            except ChannelError:
                continue  # its own thread meets the end of the connection and says so

    def _post(self, event: Event) -> None:
        with self._posting:
            if not self._closed:
                self._recipient(event)

    def _append(self, claim: Claim, event: JournalEvent) -> None:
        if self._closed:
            return
        try:
            claim.append(event)
        except FencedError as error:
            if claim is not self.claim:
                return  # by an attempt of this very session, which came after
            with self._lock:
                self._heard.fenced = True
            self._post(Fenced(error.message, claim.lease.attempt))
        except UnbrokenError as error:
            self._post(Trouble(f"the journal could not be written: {error}"))

    def _read_journal(self, claim: Claim, patience: float) -> JournalFacts:
        deadline = self._clock.monotonic() + patience
        while True:
            try:
                claim.journal.refresh()
                break
            except StoreError:
                if self._clock.monotonic() + _RETRY_SECONDS > deadline:
                    raise
                self._clock.sleep(_RETRY_SECONDS)
        return self._journal_facts(claim)

    def _journal_facts(self, claim: Claim) -> JournalFacts:
        state = claim.journal.state
        mine = [state.attempts[n] for n in self._claims.attempts if n in state.attempts]
        return JournalFacts(
            finished_step=-1 if state.finished_step is None else state.finished_step,
            finished_here=state.finished_by == claim.lease.attempt,
            durable_step=state.checkpoints[-1].step if state.checkpoints else -1,
            committed=any(record.committed for record in mine),
            fenced=state.fences(claim.lease.attempt, claim.lease.claim),
            without_progress=state.attempts_without_progress(),
        )


def _open_page(path: Path) -> ProgressPage | None:
    try:
        return ProgressPage(path)
    except (OSError, ValueError):
        return None  # not made yet, or gone with its folder
