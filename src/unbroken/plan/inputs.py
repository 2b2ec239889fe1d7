"""What a plan rests on: given, measured by the run's own journal, or assumed; and which of these. Hours and 1/h."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from unbroken.journal import RunState
from unbroken.journal.events import Note
from unbroken.policy.observed_hazard import observed_hazard
from unbroken.policy.pool_choice import PRIOR_HAZARD

_SECOND = 1.0 / 3600.0
_ASSUMED = {
    "hazard": PRIOR_HAZARD,
    "notice_success": 0.9,
    "stall": 5.0 * _SECOND,
    "upload": 90.0 * _SECOND,
    "restart": 9.0 * 60.0 * _SECOND,
    "wait": 10.0 * 60.0 * _SECOND,
    "blocking": 120.0 * _SECOND,
}
_LAST = 20
"""Saves that are looked at."""


@dataclass(frozen=True)
class Input:
    """One number, and where it comes from, in words."""

    value: float
    source: str


@dataclass(frozen=True)
class Inputs:
    """All that is not in the job file."""

    hazard: Input
    """Interruptions of the run per hour."""
    notice_success: Input
    stall: Input
    """Of an overlapped save."""
    upload: Input
    restart: Input
    wait: Input
    blocking: Input
    """Stall of the usual save, which stops the training until it is durable."""


def inputs_of(given: Mapping[str, float], state: RunState | None) -> Inputs:
    """Given outranks measured, and that outranks assumed.

    Args:
        given: by the names of :class:`Inputs`.
        state: of the job's run; None where it has not begun.
    """
    measured = _measured(state) if state is not None else {}
    found = {}
    for name, value in _ASSUMED.items():
        if name in given:
            found[name] = Input(given[name], "given")
        else:
            found[name] = measured.get(name, Input(value, "assumed"))
    return Inputs(**found)


def _measured(state: RunState) -> dict[str, Input]:
    found = {}
    commits = state.commits[-_LAST:]
    if commits:
        source = f"median of {len(commits)} saves"
        found["stall"] = Input(statistics.median(each.event.stall for each in commits) * _SECOND, source)
        found["upload"] = Input(statistics.median(each.event.seconds for each in commits) * _SECOND, source)
    starts = _starts(state)
    if starts:
        found["restart"] = Input(statistics.median(starts) * _SECOND, f"median of {len(starts)} starts")
    hazard = observed_hazard(state)
    if hazard is not None:
        source = f"{len(state.trainings)} attempts, cautiously"
        found["hazard"] = Input(hazard.per_hour + hazard.failures_per_hour, source)
        share = hazard.per_hour / (hazard.per_hour + hazard.failures_per_hour)
        found["notice_success"] = Input(hazard.notice_success * share, source)
    return found


def _starts(state: RunState) -> list[float]:
    """Seconds from a claim until training could go on."""
    return [
        entry.at - state.attempts[entry.attempt].claimed_at
        for entry in state.notes
        if isinstance(entry.event, Note) and entry.event.topic == "restored"
    ]
