"""How often a run has been interrupted so far, by its own journal. Pure: the journal's state in, a hazard out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unbroken.journal import RunState

ENOUGH = 3
"""Interruptions before their number says something."""


@dataclass(frozen=True)
class Hazard:
    """How often, an hour, training is interrupted, and how often that is heard in time to save."""

    per_hour: float
    """Interruptions by the provider."""
    notice_success: float = 0.0
    """Share of them in which a save at the notice becomes durable; a cautious figure, 0 to 1."""
    failures_per_hour: float = 0.0
    """Ends that nobody announces: broken hardware, crashes."""

    @property
    def mean_seconds(self) -> float:
        """Mean time between interruptions that lose work; infinite where there are none."""
        lossy = self.per_hour * (1.0 - self.notice_success) + self.failures_per_hour
        return 3600.0 / lossy if lossy > 0 else math.inf


def observed_hazard(state: RunState) -> Hazard | None:
    """What the attempts that are over have met, on the cautious side: as if one more interruption had come just now,
    and its save had been too late. None while fewer than :data:`ENOUGH` have come.

    An attempt that ended for an error of its program, or because somebody ended it, adds to the time and is no
    interruption. One that never got as far as a step does not count: its time is waiting and not training.
    """
    over = [record for record in state.trainings if record is not state.owner or record.ended is not None]
    over = [record for record in over if record.restored_step >= 0 or record.committed]
    announced = [(record, record.ended) for record in over if record.ended and record.ended.cause == "interrupted"]
    sudden = [record for record in over if record.ended is None or record.ended.cause == "crashed"]
    hours = sum(max(0.0, record.last_seen_at - record.claimed_at) for record in over) / 3600.0
    if len(announced) + len(sudden) < ENOUGH or hours <= 0.0:
        return None
    saved = sum(record.committed[-1].step >= ended.last_step for record, ended in announced if record.committed)
    return Hazard(
        per_hour=(len(announced) + 1) / hours,
        notice_success=saved / (len(announced) + 1),
        failures_per_hour=len(sudden) / hours,
    )
