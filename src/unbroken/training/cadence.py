"""When to save: every so many steps, every so often, or as often as saving costs next to nothing."""

from __future__ import annotations

from unbroken.clock import Clock
from unbroken.every import Auto, Every, parse_every
from unbroken.policy.observed_hazard import Hazard
from unbroken.training.auto_cadence import FIRST_STEPS, Pace

__all__ = ["Auto", "Cadence", "Every", "Hazard", "parse_every"]

_RETRY_SECONDS = 30.0
_NEVER = float("inf")


class Cadence:
    """Says whether a save is due. Not thread-safe: the loop owns it, and tells it what other threads report.

    A save may be due while the one before is still under way; then it waits for that, which is the owner's to see to.

    Args:
        every: the cadence.
        step: completed steps at the start.
        clock: the time by which durations are measured.
        hazard: for ``auto``: how often training is interrupted, if that is known.
    """

    def __init__(self, every: Every, *, step: int, clock: Clock, hazard: Hazard | None = None) -> None:
        self._every = every
        self._clock = clock
        self._pace = Pace(every.auto, hazard) if every.auto is not None else None
        # Due at this moment, or at the first boundary that both the others allow.
        self._latest: float = _NEVER
        self._due_step: float = _NEVER
        self._due_time: float = -_NEVER
        self._saved_at = clock.monotonic()
        self._under_way = False
        self.next_save_at = 0.0
        """Wall-clock time of the next save, as expected now, of a cadence in time and of ``auto``; 0 otherwise."""
        self.next_save_step = -1
        """Step of the next save of a cadence in steps; -1 otherwise."""
        self.advice = ""
        """Something that the user should hear, or "". Who says it empties it; each thing is put here once."""
        if self._pace is None:
            self.saved(step)
        else:
            self._begin(self._pace, step)

    def due(self, step: int, now: float) -> bool:
        """Whether to save at this step boundary; ``now`` is the clock's monotonic time."""
        return now >= self._latest or (step >= self._due_step and now >= self._due_time)

    @property
    def interval(self) -> float:
        """Seconds from save to save of an ``auto`` cadence, as expected now; 0 for others."""
        return self._pace.expected if self._pace is not None else 0.0

    def saved(self, step: int) -> None:
        """A save was taken at this boundary, and is under way."""
        self._latest = self._due_step = _NEVER
        self._saved_at = self._clock.monotonic()
        if self._pace is not None:
            self._under_way = True
            self._latest = self._saved_at + self._pace.longest
            self._expect(self._saved_at + self._pace.expected)
        elif self._every.steps is not None:
            # On the grid of multiples, so that the steps with checkpoints do not depend on where attempts began.
            self._due_step = self.next_save_step = (step // self._every.steps + 1) * self._every.steps
        elif self._every.seconds is not None:
            self._latest = self._saved_at + self._every.seconds
            self._expect(self._latest)

    def measured(self, stall: float, durable: float) -> None:
        """The save under way was committed. Changes nothing but an ``auto`` cadence.

        Args:
            stall: seconds of training that it cost, as far as known: the loop stood still, waited for the copy, was
                slowed down.
            durable: seconds from its step boundary until it was committed.
        """
        if self._pace is None:
            return
        interval = self._pace.measured(stall, durable)
        if self._under_way:
            self._under_way = False
            # An advisory, or a save that failed, may have asked for an earlier one meanwhile.
            self._latest = min(self._latest, self._saved_at + interval)
            self._expect(self._latest)
        self.advice = self.advice or self._pace.advice()

    def failed(self) -> None:
        """A save did not become durable: take another one soon, before the next regular one."""
        pause = _RETRY_SECONDS if self._every.seconds is None else min(_RETRY_SECONDS, self._every.seconds)
        if self._pace is not None:
            self._under_way = False
            pause = self._pace.retry(_RETRY_SECONDS)
        self._latest = min(self._latest, self._clock.monotonic() + pause)
        if self._pace is not None:
            self._expect(self._latest)

    def advised(self) -> None:
        """An interruption has become likely: save at the next boundary."""
        self._latest = -_NEVER

    def _begin(self, pace: Pace, step: int) -> None:
        """Save early the first time, so that there is something to resume from and something measured."""
        self._due_step = step + FIRST_STEPS
        self._due_time = self._saved_at + pace.first
        self._latest = self._saved_at + pace.longest
        self._expect(self._due_time)

    def _expect(self, due: float) -> None:
        self.next_save_at = self._clock.now() + max(0.0, due - self._clock.monotonic())
