"""Looking on while a run trains: its progress pages, and what was seen last of each attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from unbroken.agent.runtime import AgentStatus
from unbroken.clock import Clock
from unbroken.drill.schedule import Strike
from unbroken.engine import Launch
from unbroken.link.progress import Progress, ProgressPage
from unbroken.report import Sighting

_TELL_SECONDS = 0.25


class Listener(Protocol):
    """Who is told how a drill goes on. Seconds are those since the phase began."""

    def phase(self, title: str) -> None:
        """A training begins."""

    def launched(self, number: int) -> None:
        """An agent was started, or those of all nodes together; 1 is the first of this phase."""

    def progress(self, step: int, until: int, attempt: int) -> None:
        """The training has completed ``step`` of ``until`` steps."""

    def struck(self, strike: Strike, step: int, number: int, count: int) -> None:
        """Interruption ``number`` of ``count`` was made, at ``step``."""

    def phase_ended(self, seconds: float) -> None:
        """The training is finished."""

    def comparing(self) -> None:
        """The final states are read and compared."""


class Onlooker:
    """A :class:`~unbroken.engine.Watcher` that follows the progress pages and keeps what it saw of each attempt.

    Args:
        listener: told of launches and progress.
        clock: wall time of what is seen.
    """

    def __init__(self, listener: Listener, clock: Clock) -> None:
        self.sightings: dict[int, Sighting] = {}
        self._listener = listener
        self._clock = clock
        self._pages: dict[int, tuple[str, int, ProgressPage]] = {}
        """Of each node's first trainer: path, attempt, page."""
        self._told_at = float("-inf")

    def started(self, launch: Launch) -> None:
        if launch.node == 0:
            self._listener.launched(launch.number)

    def watch(self, launch: Launch) -> None:
        status = launch.status()
        if status is not None and status.attempt and status.trainers:
            progress = self.look(launch, status)
            if progress is not None:
                self._note(launch, status.attempt, progress)

    def ended(self, launch: Launch) -> None:
        """Keep the last word of the attempt that was going on: the page outlives its writer."""
        if launch.node in self._pages:
            _, attempt, page = self._pages.pop(launch.node)
            progress = page.read()
            if progress is not None:
                self._see(attempt, progress)
            page.close()

    def look(self, launch: Launch, status: AgentStatus) -> Progress | None:
        """What the page of this node's first trainer says now."""
        trainer = min(status.trainers, key=lambda one: one.rank)
        known = self._pages.get(launch.node)
        if known is None or known[:2] != (trainer.progress, status.attempt):
            if known is not None:
                self._pages.pop(launch.node)[2].close()
            if not trainer.progress or not Path(trainer.progress).is_file():
                return None
            known = (trainer.progress, status.attempt, ProgressPage(Path(trainer.progress)))
            self._pages[launch.node] = known
        return known[2].read()

    def _note(self, launch: Launch, attempt: int, progress: Progress) -> None:
        self._see(attempt, progress)
        now = self._clock.monotonic()
        if launch.node == 0 and now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            self._listener.progress(progress.step, progress.until, attempt)

    def _see(self, attempt: int, progress: Progress) -> None:
        seen = self.sightings.get(attempt)
        if seen is None or progress.step > seen.last_step:  # nodes complete a step one after the other
            self.sightings[attempt] = Sighting(progress.step, progress.at)
