"""The attempts of a run in order: how far each came, what had to be done again, and how long that took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from unbroken.journal import AttemptRecord, Entry, RunState
from unbroken.journal.events import Note

FINISHED = "finished"
UNKNOWN = "no word"
"""Cause of an attempt that was replaced and never said how it ended: it and its agent died at once."""


class Sighting(msgspec.Struct, frozen=True):
    """What somebody who watched an attempt saw last of it: more than the journal holds where the agent died.

    Moments are wall-clock seconds. ``cause`` outranks the journal's word where it is not empty.
    """

    last_step: int
    last_step_at: float
    ended_at: float | None = None
    cause: str = ""


class AttemptLine(msgspec.Struct, frozen=True):
    """One attempt in numbers. Moments are wall-clock seconds; steps are completed steps, -1 where not known."""

    attempt: int
    host: str
    pool: str
    price: float | None
    currency: str
    began_at: float
    ended_at: float | None
    """None for an attempt that owns the run and has not ended."""
    last_seen_at: float
    cause: str
    """Why it ended; "" while it goes on."""
    restored_step: int
    last_step: int
    last_step_at: float | None
    steps_done: int
    steps_repeated: int
    """Steps of this attempt that a later one did again."""
    startup_seconds: float | None
    """From the claim until training could go on."""
    caught_up_at: float | None
    """When a later attempt had reached ``last_step`` and new work began."""

    @property
    def lost_seconds(self) -> float | None:
        """From the last completed step until a later attempt was there again: restart and repeated work together."""
        if self.caught_up_at is None or self.last_step_at is None:
            return None
        return max(0.0, self.caught_up_at - self.last_step_at)

    @property
    def seconds(self) -> float:
        """How long it lived, as far as is known."""
        return max(0.0, (self.ended_at or self.last_seen_at) - self.began_at)


def build_timeline(
    entries: Sequence[Entry], state: RunState, sightings: Mapping[int, Sighting] | None = None
) -> list[AttemptLine]:
    """The attempts of a run, oldest first. Those that did not train are left out.

    Args:
        entries: the run's journal.
        state: the state that follows from it.
        sightings: by attempt number.
    """
    seen = sightings or {}
    restored_at = restored_moments(entries, state)
    attempts = state.trainings
    marks = [_milestones(record, restored_at, seen.get(record.attempt)) for record in attempts]
    return [
        _line(
            record,
            marks[i],
            attempts[i + 1 :],
            marks[i + 1 :],
            restored_at,
            seen.get(record.attempt),
            replaced=record is not state.owner,
        )
        for i, record in enumerate(attempts)
    ]


def lost_seconds(timeline: Sequence[AttemptLine]) -> float:
    """Seconds that interruptions cost in all. Attempts lost while catching up overlap; no second counts twice."""
    total, until = 0.0, float("-inf")
    for line in timeline:
        if line.last_step_at is None or line.caught_up_at is None:
            continue
        begin = max(line.last_step_at, until)
        total += max(0.0, line.caught_up_at - begin)
        until = max(until, line.caught_up_at)
    return total


_Milestones = list[tuple[int, float]]
"""(step, when it was completed) as far as is known, both rising."""


def restored_moments(entries: Sequence[Entry], state: RunState) -> dict[int, float]:
    """By attempt, when its training could go on, in wall-clock seconds; it is not known of those that are left out."""
    ignored = {entry.n for entry in state.ignored}
    return {
        entry.attempt: entry.at
        for entry in entries
        if entry.n not in ignored and isinstance(entry.event, Note) and entry.event.topic == "restored"
    }


def restored_step(record: AttemptRecord) -> int:
    """Where the attempt began, or -1; a run's first checkpoint has no parent, so its attempt began at step 0."""
    if record.restored_step < 0 and record.committed and not record.committed[0].event.parent:
        return 0
    return record.restored_step


def _milestones(record: AttemptRecord, restored_at: Mapping[int, float], seen: Sighting | None) -> _Milestones:
    marks: _Milestones = []
    began = restored_step(record)
    if began >= 0:
        marks.append((began, restored_at.get(record.attempt, record.claimed_at)))
    marks += [(commit.step, commit.at - commit.event.seconds) for commit in record.committed]
    if seen is not None:
        marks.append((seen.last_step, seen.last_step_at))
    if record.ended is not None:
        marks.append((record.ended.last_step, record.last_seen_at))
    rising: _Milestones = []
    for step, at in marks:
        if step >= 0 and (not rising or step > rising[-1][0]):
            rising.append((step, max(at, rising[-1][1] if rising else at)))
    return rising


def _line(
    record: AttemptRecord,
    marks: _Milestones,
    later: Sequence[AttemptRecord],
    later_marks: Sequence[_Milestones],
    restored_at: Mapping[int, float],
    seen: Sighting | None,
    *,
    replaced: bool,
) -> AttemptLine:
    restored = restored_step(record)
    last_step, last_step_at = marks[-1] if marks else (-1, None)
    next_restored = next((step for step in map(restored_step, later) if step >= 0), None)
    caught_up = (_when_reached(of, last_step) for of in later_marks)
    started = restored_at.get(record.attempt)
    return AttemptLine(
        attempt=record.attempt,
        host=record.origin.host,
        pool=record.origin.pool,
        price=record.origin.price,
        currency=record.origin.currency,
        began_at=record.claimed_at,
        ended_at=_ended_at(record, replaced, seen),
        last_seen_at=record.last_seen_at,
        cause=_cause(record, replaced, seen),
        restored_step=restored,
        last_step=last_step,
        last_step_at=last_step_at,
        steps_done=max(0, last_step - restored) if restored >= 0 else 0,
        steps_repeated=max(0, last_step - next_restored) if next_restored is not None and last_step >= 0 else 0,
        startup_seconds=None if started is None else max(0.0, started - record.claimed_at),
        caught_up_at=next((at for at in caught_up if at is not None), None) if last_step >= 0 else None,
    )


def _ended_at(record: AttemptRecord, replaced: bool, seen: Sighting | None) -> float | None:
    if seen is not None and seen.ended_at is not None:
        return seen.ended_at
    return record.last_seen_at if record.ended is not None or replaced else None


def _cause(record: AttemptRecord, replaced: bool, seen: Sighting | None) -> str:
    if seen is not None and seen.cause:
        return seen.cause
    if record.ended is not None:
        return record.ended.cause
    return UNKNOWN if replaced else ""


def _when_reached(marks: _Milestones, step: int) -> float | None:
    """When an attempt had completed ``step``, between two milestones by their mean speed; None if it never did."""
    if not marks or step > marks[-1][0]:
        return None
    before = marks[0]
    for mark in marks:
        if mark[0] >= step:
            done, steps = step - before[0], mark[0] - before[0]
            return mark[1] if steps <= 0 or done <= 0 else before[1] + (mark[1] - before[1]) * done / steps
        before = mark
    return None
