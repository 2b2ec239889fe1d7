"""Where the next start of a gang goes, and when the one that runs must leave. What a policy, or a stop, hangs on to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Seat:
    """Where a start goes; what its agents write into the journal."""

    pool: str = ""
    """Type/zone/market; "" leaves it to the settings of the agents."""
    price: float | None = None
    """Of a node for an hour."""
    currency: str = ""


class Placement(Protocol):
    """Asked by the gang, from the thread that runs it."""

    def next_seat(self) -> Seat | None:
        """Wait until a start may begin; None where there shall be none any more."""

    def leave_now(self) -> int | None:
        """The signal that all agents of the running start are to get now; None while they may go on.

        Called about a hundred times a second. After a signal it is not asked again until the next start.
        """


class Anywhere:
    """Each start may begin at once, and goes on as long as it likes."""

    def next_seat(self) -> Seat | None:
        return Seat()

    def leave_now(self) -> int | None:
        return None
