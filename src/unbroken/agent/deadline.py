"""What must happen to a command's processes as a deadline comes near. Pure: moments in, actions out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

_TERMINATE_SHARE, _TERMINATE_LONGEST = 0.15, 10.0
_KILL_SHARE, _KILL_LONGEST = 0.05, 3.0
_LEAVE_SHARE, _LEAVE_LONGEST = 0.04, 1.0


class Pressure(Enum):
    """How hard the agent must press."""

    NONE = "none"
    """Leave the trainers to save."""
    TERMINATE = "terminate"
    """SIGTERM for the command itself: it may still leave by its own hand."""
    KILL = "kill"
    """SIGKILL for the whole tree: the agent needs the rest of the time to write down what happened."""


@dataclass(frozen=True)
class Deadline:
    """An interruption's timetable. All values are seconds on one clock, whichever the caller uses.

    The margins shrink with the time that is given, so that a notice of a few seconds leaves most of them to the save.
    """

    heard_at: float
    at: float

    @property
    def terminate_at(self) -> float:
        """When the command is sent SIGTERM."""
        return self.at - min(_TERMINATE_LONGEST, _TERMINATE_SHARE * self._given)

    @property
    def kill_at(self) -> float:
        """When everything that still runs is killed."""
        return self.at - min(_KILL_LONGEST, _KILL_SHARE * self._given)

    @property
    def leave_at(self) -> float:
        """When the agent uploads no more: what is left is for its last words."""
        return self.at - min(_LEAVE_LONGEST, _LEAVE_SHARE * self._given)

    @property
    def _given(self) -> float:
        return max(0.0, self.at - self.heard_at)

    def pressure(self, now: float) -> Pressure:
        """What is due at ``now``."""
        if now >= self.kill_at:
            return Pressure.KILL
        return Pressure.TERMINATE if now >= self.terminate_at else Pressure.NONE

    def next_change(self, now: float) -> float | None:
        """Seconds from ``now`` until the pressure rises, or None where it cannot rise any more."""
        later = [moment - now for moment in (self.terminate_at, self.kill_at) if moment > now]
        return min(later) if later else None


def backoff(failures: int, first: float, longest: float) -> float:
    """Seconds to wait before the restart after ``failures`` (1, 2, ...) ends in a row without progress."""
    return float(min(longest, first * 2.0 ** min(max(failures, 1) - 1, 30)))
