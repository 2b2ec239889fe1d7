"""Follows one start of the command, from its first process to the facts about its end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from unbroken.agent.arena import Arena
from unbroken.agent.deadline import Pressure
from unbroken.agent.display import Display
from unbroken.agent.events import (
    Admitted,
    AdvisoryHeard,
    Chosen,
    Durable,
    Event,
    Fenced,
    Mailbox,
    NoticeHeard,
    SignalHeard,
    ThreadFailed,
    Told,
    Trouble,
)
from unbroken.agent.interruption import Interruption
from unbroken.agent.options import AgentOptions
from unbroken.agent.process_tree import Tree
from unbroken.agent.runtime import AgentStatus, RuntimeFolder, TrainerStatus
from unbroken.agent.session import Session
from unbroken.agent.view import SpeedMeter, View
from unbroken.clock import Clock, format_duration
from unbroken.journal import Origin
from unbroken.journal.events import Advisory, Notice
from unbroken.link.messages import (
    LOST_RANK,
    Advice,
    Bye,
    Committed,
    Restored,
    Restoring,
    SaveFailed,
    SignalReceived,
    Stop,
    StopAgreed,
    Stopping,
)
from unbroken.notice import InterruptionNotice
from unbroken.size import size_text

T = TypeVar("T")

TICK = 0.5
"""Seconds between two looks at how things stand where nothing happens."""
_DURABLE_LINE_SECONDS = 30.0


@dataclass(frozen=True)
class Surroundings:
    """What outlives one start of the command."""

    options: AgentOptions
    origin: Origin
    clock: Clock
    mailbox: Mailbox
    interruption: Interruption
    display: Display
    folder: RuntimeFolder
    arena: Arena


class Watch:
    """One start of the command. For the main loop's thread alone.

    Args:
        forward_signal: whether the command is ours: a stop goes to it as SIGTERM while no trainer is connected, and
            the deadline holds for what it does after the good-byes of its trainers, too.
    """

    def __init__(self, around: Surroundings, tree: Tree, session: Session, *, forward_signal: bool = True) -> None:
        self._around = around
        self._tree = tree
        self._session = session
        self._forward_signal = forward_signal
        self._view = View(phase="starting")
        self._speed = SpeedMeter()
        self._terminated = False
        self._killed = False
        self._durable_said_at = -_DURABLE_LINE_SECONDS
        self._failed: SaveFailed | None = None
        """What was said last of a save that failed."""
        self._goes_on = False
        """Whether it was said from where the training of this attempt goes on."""
        self._restoring: dict[int, Restoring] = {}
        """How far each rank here has come with its restore."""
        self._lost = ""
        """What was said last of the end of a rank elsewhere."""
        self._starts_again = False
        """Whether a launcher starts trainers again that have left."""
        self._recorded: tuple[int, InterruptionNotice] | None = None
        """The notice that was last written to the journal, and for which attempt."""

    def follow(self, over: Callable[[], bool]) -> None:
        """Serve the trainers, pass notices on and enforce the deadline until ``over()``."""
        while not over():
            self.turn(TICK)

    def enter(self, phase: str) -> None:
        """Show from now on what is being done instead of steps."""
        self._view = replace(self._view, phase=phase)

    def turn(self, longest: float) -> None:
        """Wait for something to happen, deal with it, press where the deadline wants it, and show how things stand."""
        change = self._around.interruption.next_change()
        event = self._around.mailbox.take(longest if change is None else min(longest, change))
        while event is not None:
            self._handle(event)
            event = self._around.mailbox.take(0)
        self._press()
        self._publish()

    def _handle(self, event: Event) -> None:
        match event:
            case SignalHeard(number):
                self._signalled(number)
            case NoticeHeard(notice):
                self._around.interruption.accept(notice)
                self._pass_on(notice)
            case AdvisoryHeard(advisory):
                self._session.advise(Advice(advisory.source, advisory.reason))
                self._session.record(Advisory(advisory.source, advisory.reason))
                self._say(f"advisory from {advisory.source}: {advisory.reason}")
            case Admitted():
                self._admitted(event)
            case Told():
                self._told(event)
            case Durable(event=commit):
                self._committed(commit.step, commit.seconds)
            case Fenced(text, attempt):
                claim = self._session.claim
                if claim is not None and claim.lease.attempt == attempt:
                    self._say(f"{text}: ending the command")
                    self._tree.clear(self._around.options.leftover_grace)
            case Trouble(text) | Chosen(text=text):
                self._say(text)
            case ThreadFailed(error):
                raise error

    def _signalled(self, number: signal.Signals) -> None:
        interruption = self._around.interruption
        if interruption.announced and number == signal.SIGINT:
            self._say("second SIGINT: ending the command at once")
            self._tree.kill()
            return
        interruption.signalled(number, "the agent")

    def _pass_on(self, notice: InterruptionNotice) -> None:
        told = self._session.stop(Stop(notice.source, notice.reason, notice.deadline))
        self._record_notice()
        left = format_duration(max(0.0, notice.deadline - self._around.clock.now()))
        self._say(f"notice from {notice.source}: {notice.reason}; {left} left")
        if not told and self._forward_signal:
            self._tree.terminate()

    def _record_notice(self) -> None:
        notice, claim = self._around.interruption.notice, self._session.claim
        if notice is None or claim is None or self._recorded == (claim.lease.attempt, notice):
            return
        if self._around.interruption.is_agreed(notice):
            return  # by whoever heard it
        self._recorded = (claim.lease.attempt, notice)
        self._session.record(Notice(notice.source, notice.reason, notice.deadline))

    def _admitted(self, admitted: Admitted) -> None:
        self._starts_again = admitted.hello.restarts
        if not admitted.first:
            return
        self._speed = SpeedMeter()
        self._view = View(attempt=admitted.attempt, phase="restoring")
        self._restoring.clear()
        self._goes_on = bool(admitted.hello.attempt and not admitted.hello.joining)  # with the agent before this one
        self._lost = ""
        claim = self._session.claim
        if claim is not None and claim.journal.state.checkpoints:
            newest = claim.journal.state.checkpoints[-1]
            self._view = replace(self._view, durable_step=newest.step, durable_at=newest.at)
        hello = admitted.hello
        begun = "attempt" if not hello.attempt else "joined attempt" if hello.joining else "took over attempt"
        who = f"rank {hello.rank} of {hello.world_size}, " if hello.world_size > 1 else ""
        self._say(f"{begun} {admitted.attempt} of {hello.uri} ({who}process {hello.pid})")
        self._record_notice()

    def _told(self, told: Told) -> None:
        match told.message:
            case SignalReceived(signal=name, at=at):
                number = getattr(signal, name, signal.SIGTERM)
                self._around.interruption.signalled(signal.Signals(number), f"rank {told.rank}", at)
            case StopAgreed(source=source, reason=reason, deadline=deadline):
                self._around.interruption.agreed(source, reason, deadline)
            case Committed(step=step, seconds=seconds):
                self._committed(step, seconds)
            case SaveFailed() as failed if failed != self._failed:  # every rank says it
                self._failed = failed
                self._say(f"step {failed.step} could not be saved: {failed.message}")
            case Restoring() as restoring if self._view.phase:
                self._restoring[told.rank] = restoring
                self._view = replace(self._view, phase=_sum(self._restoring.values()))
            case Restored() as restored:
                self._restored(restored)
            case Stopping(step=step) if self._view.saving_last != step:
                self._view = replace(self._view, saving_last=step)
                self._say(f"saving step {step} before leaving")
            case Bye(outcome="failed", kind=kind, message=message) if kind == LOST_RANK and message == self._lost:
                return  # every rank says it
            case Bye(outcome="interrupted") if self._starts_again and self._around.interruption.announced:
                if not self._session.connected():
                    self._tree.terminate()  # else the launcher would start trainers on a machine that is taken away
            case Bye(outcome="failed") as bye:
                self._lost = bye.message if bye.kind == LOST_RANK else self._lost
                self._say(f"rank {told.rank} failed after step {bye.step}: {bye.error}: {bye.message}")

    def _restored(self, restored: Restored) -> None:
        self._view = replace(self._view, phase="")
        if self._goes_on:
            return  # every rank says it
        self._goes_on = True
        place = ", from this node's memory" if restored.from_memory else ""
        where = f"from step {restored.step}{place} ({restored.seconds:.1f}s)" if restored.step > 0 else "from the start"
        self._say(f"training goes on {where}")

    def _committed(self, step: int, seconds: float) -> None:
        if step < self._view.durable_step:
            return
        clock = self._around.clock
        again = step == self._view.durable_step  # every rank says it
        self._view = replace(self._view, durable_step=step, durable_at=clock.now())
        due = clock.monotonic() - self._durable_said_at >= _DURABLE_LINE_SECONDS
        if not again and (due or self._view.saving_last >= 0):
            self._durable_said_at = clock.monotonic()
            self._say(f"step {step} is durable ({format_duration(seconds)} after it was completed)")

    def _press(self) -> None:
        if not self._forward_signal and self._session.heard().byes and not self._session.connected():
            return  # it only waits for us now
        match self._around.interruption.pressure():
            case Pressure.KILL:
                if not self._tree.ended():
                    if not self._killed:
                        self._say("the deadline is here: killing the command")
                    self._killed = True
                    self._tree.kill()
            case Pressure.TERMINATE if not self._terminated:
                self._terminated = True
                if not self._tree.ended():
                    self._say("the deadline is near: SIGTERM to the command")
                    self._tree.terminate()

    def _publish(self) -> None:
        around, claim = self._around, self._session.claim
        hellos = self._session.trainers()
        trainers = [TrainerStatus(hello.rank, hello.pid, hello.progress) for hello in hellos]
        around.folder.write(
            AgentStatus(
                around.origin.pid,
                self._tree.pid,
                claim.uri if claim else around.options.uri,
                claim.lease.attempt if claim else 0,
                trainers,
                max((hello.world_size for hello in hellos), default=1),
            )
        )
        around.display.show(self._current_view())

    def _current_view(self) -> View:
        heard = self._session.heard()
        progress = heard.progress
        if progress is not None:
            self._speed.add(progress)
            if self._view.phase.partition(" ")[0] in ("starting", "restoring"):
                self._view = replace(self._view, phase="")
        notice = self._around.interruption.notice
        return replace(
            self._view,
            progress=progress,
            ranks=heard.world_size,
            ranks_here=len(self._session.trainers()),
            speed=self._speed.speed,
            notice_source=notice.source if notice else "",
            deadline=notice.deadline if notice else 0.0,
        )

    def _say(self, text: str) -> None:
        self._around.display.say(text)


def _sum(restoring: Iterable[Restoring]) -> str:
    """How far the ranks of this node are, together."""
    parts = list(restoring)
    return f"restoring {size_text(sum(each.done for each in parts))} of {size_text(sum(each.total for each in parts))}"
