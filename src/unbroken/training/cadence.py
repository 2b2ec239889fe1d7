"""When to save: every so many steps, or every so often."""

from __future__ import annotations

from dataclasses import dataclass

from unbroken.clock import Clock, parse_duration
from unbroken.errors import ConfigError

_RETRY_SECONDS = 30.0
_NEVER = float("inf")
_HINT = "Write a number of steps, as 500, or a duration, as '10min'"


@dataclass(frozen=True)
class Every:
    """A cadence: exactly one of the two is set."""

    steps: int | None = None
    seconds: float | None = None


def parse_every(value: int | str) -> Every:
    """Read ``every=``: a number of steps (``500`` or ``"500"``), or a duration (``"10min"``).

    Raises:
        ConfigError: it is neither, or not positive.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f"every={value!r} is no cadence", kind="every", hint=_HINT)
    if isinstance(value, int) or value.strip().lstrip("-").isdigit():
        if int(value) < 1:
            raise ConfigError(f"every={value!r} is less than one step", kind="every", hint=_HINT)
        return Every(steps=int(value))
    try:
        return Every(seconds=parse_duration(value))
    except ConfigError as error:
        raise ConfigError(f"every={value!r} is no cadence", kind="every", hint=_HINT) from error


class Cadence:
    """Says whether a save is due. Not thread-safe: the loop owns it.

    Args:
        every: the cadence.
        step: completed steps at the start.
        clock: the time by which durations are measured.
    """

    def __init__(self, every: Every, *, step: int, clock: Clock) -> None:
        self._every = every
        self._clock = clock
        self._due_step: float = _NEVER
        self._due_time: float = _NEVER
        self.next_save_at = 0.0
        """Wall-clock time of the next save of a cadence in time; 0 otherwise."""
        self.next_save_step = -1
        """Step of the next save of a cadence in steps; -1 otherwise."""
        self.saved(step)

    def due(self, step: int, now: float) -> bool:
        """Whether to save at this step boundary; ``now`` is the clock's monotonic time."""
        return step >= self._due_step or now >= self._due_time

    def saved(self, step: int) -> None:
        """A save was taken at this boundary."""
        self._due_time = _NEVER
        if self._every.steps is not None:
            # On the grid of multiples, so that the steps with checkpoints do not depend on where attempts began.
            self._due_step = self.next_save_step = (step // self._every.steps + 1) * self._every.steps
        elif self._every.seconds is not None:
            self._due_time = self._clock.monotonic() + self._every.seconds
            self.next_save_at = self._clock.now() + self._every.seconds

    def failed(self) -> None:
        """A save did not become durable: take another one soon, before the next regular one."""
        pause = _RETRY_SECONDS if self._every.seconds is None else min(_RETRY_SECONDS, self._every.seconds)
        self._due_time = min(self._due_time, self._clock.monotonic() + pause)

    def advised(self) -> None:
        """An interruption has become likely: save at the next boundary."""
        self._due_time = -_NEVER
