"""Making the scheduled interruptions happen, each at its moment."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import psutil

from unbroken.agent.runtime import AgentStatus
from unbroken.clock import Clock
from unbroken.drill.schedule import Strike
from unbroken.drill.watching import Listener, Onlooker
from unbroken.engine import Launch
from unbroken.journal import AttemptRecord, RunState
from unbroken.report import Sighting
from unbroken.testing import EC2MetadataService

_NOTICE_SECONDS = 120.0
_DEATH_SECONDS = 10.0


@dataclass(frozen=True)
class Made:
    """An interruption that was made: of which attempt, when (wall-clock seconds), and the last step completed then."""

    strike: Strike
    attempt: int
    at: float
    step: int

    @property
    def kills(self) -> bool:
        """Whether the attempt ended at that moment, without a word of its own."""
        return self.strike.kind in ("kill-trainer", "kill-both")


class Striker(Onlooker):
    """Watches a run and interrupts it by a schedule, one interruption an attempt.

    Args:
        schedule: in the order of the steps.
        metadata: the metadata services that the run's agents ask, one for each node.
        listener: told of everything.
        clock: for delays.
    """

    def __init__(
        self, schedule: list[Strike], metadata: Sequence[EC2MetadataService], listener: Listener, clock: Clock
    ) -> None:
        super().__init__(listener, clock)
        self.nodes = len(metadata)
        self.made: list[Made] = []
        self._schedule = schedule
        self._metadata = metadata
        self._due_at: float | None = None

    def watch(self, launch: Launch) -> None:
        super().watch(launch)
        status = launch.status()
        if len(self.made) == len(self._schedule) or status is None or not status.trainers:
            return
        if self.made and status.attempt <= self.made[-1].attempt:
            return  # that attempt was struck already and is on its way out
        strike = self._schedule[len(self.made)]
        if strike.node != launch.node:
            return
        progress = self.look(launch, status)
        if progress is None or progress.step < strike.step:
            return
        now = self._clock.monotonic()
        if self._due_at is None:
            self._due_at = now + strike.delay
        if now >= self._due_at:
            self._due_at = None
            self._strike(strike, launch, status)

    def ended(self, launch: Launch) -> None:
        super().ended(launch)
        self._metadata[launch.node].clear()  # the next attempt runs on another machine
        self._due_at = None

    def _strike(self, strike: Strike, launch: Launch, status: AgentStatus) -> None:
        if not self._deliver(strike, launch, status):
            return  # it was gone already; the next attempt is struck instead
        progress = self.look(launch, status)
        step = progress.step if progress else strike.step
        if progress is not None:
            self._see(status.attempt, progress)
        self.made.append(Made(strike, status.attempt, self._clock.now(), step))
        self._listener.struck(strike, step, len(self.made), len(self._schedule))

    def _deliver(self, strike: Strike, launch: Launch, status: AgentStatus) -> bool:
        match strike.kind:
            case "ec2-notice":
                self._metadata[launch.node].interrupt(seconds=_NOTICE_SECONDS)
                return True
            case "sigterm":
                return launch.signal(signal.SIGTERM)
            case "kill-trainer":
                return _kill([trainer.pid for trainer in status.trainers])
            case "kill-both":
                launch.kill()
                return True


def _kill(pids: list[int]) -> bool:
    """SIGKILL processes and wait until they are dead; False where one was gone already."""
    try:
        processes = [psutil.Process(pid) for pid in pids]
        for process in processes:
            process.kill()
    except psutil.NoSuchProcess:
        return False
    psutil.wait_procs(processes, timeout=_DEATH_SECONDS)
    return True


def sightings(striker: Striker) -> dict[int, Sighting]:
    """What was seen of each attempt, with the drill's own word for why it ended, by attempt."""
    seen = dict(striker.sightings)
    for made in striker.made:
        if made.attempt in seen:
            seen[made.attempt] = msgspec.structs.replace(
                seen[made.attempt],
                cause=made.strike.describe(striker.nodes),
                ended_at=made.at if made.kills else None,
            )
    return seen


def without_effect(made: list[Made], state: RunState) -> list[Made]:
    """The interruptions that interrupted nothing: the attempt went on to the end, or never heard the notice."""
    return [one for one in made if not _had_effect(one, state)]


def _had_effect(made: Made, state: RunState) -> bool:
    attempt = state.attempts.get(made.attempt)
    if attempt is None or made.attempt == max(state.attempts):
        return False
    if made.strike.kind in ("ec2-notice", "sigterm"):
        return _was_told(attempt)
    return attempt.ended is None or attempt.ended.cause != "finished"


def _was_told(attempt: AttemptRecord) -> bool:
    return bool(attempt.notices) and attempt.ended is not None and attempt.ended.cause == "interrupted"
