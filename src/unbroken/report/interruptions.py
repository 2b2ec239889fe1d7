"""What happened from a notice to training again, for each time that an attempt ended before the run was finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from unbroken.journal import AttemptRecord, CheckpointRecord, Entry, RunState
from unbroken.journal.events import Notice
from unbroken.report.timeline import FINISHED, UNKNOWN, restored_moments, restored_step


class Interruption(msgspec.Struct, frozen=True):
    """An attempt's end and what followed. Moments are wall-clock seconds, durations seconds; None where not known.

    A duration is never below 0, though the clocks of two machines may disagree.
    """

    attempt: int
    cause: str
    """As the journal has it; ``no word`` where the attempt could not say."""
    source: str
    """Who gave notice; "" where nobody did."""
    notice_at: float | None
    deadline: float | None
    stop_step: int | None
    """The last completed step."""
    stop_at: float | None
    """When it was completed; known where a checkpoint of it was committed."""
    durable_step: int | None
    """Of the newest checkpoint that the attempt made or began with."""
    durable_at: float | None
    """When the attempt committed it; None where it only began with it."""
    left_at: float
    """The attempt's last word."""
    next_attempt: int | None
    node_at: float | None
    """When the next attempt claimed the run."""
    training_at: float | None
    """When training could go on from the restored step; the first step itself is not in the journal."""
    resumed_step: int | None

    @property
    def to_stop(self) -> float | None:
        """Notice to stop step."""
        return _between(self.notice_at, self.stop_at)

    @property
    def to_durable(self) -> float | None:
        """Stop step (not before the notice) to the commit of that very step."""
        if self.stop_at is None:
            return None
        return _between(max(self.stop_at, self.notice_at or self.stop_at), self.durable_at)

    @property
    def to_node(self) -> float | None:
        """From the commit of the stop step, or else from the attempt's last word, to the next claim."""
        return _between(self.left_at if self.stop_at is None else self.durable_at, self.node_at)

    @property
    def to_training(self) -> float | None:
        """Next claim to training."""
        return _between(self.node_at, self.training_at)

    @property
    def total(self) -> float | None:
        """From the notice, or else the stop step, or else the last word, to training."""
        known = (at for at in (self.notice_at, self.stop_at, self.left_at) if at is not None)
        return _between(next(known), self.training_at)

    @property
    def spare(self) -> float | None:
        """From the commit of the stop step to the notice's deadline; negative where it came too late."""
        if self.stop_at is None or self.durable_at is None or self.deadline is None:
            return None
        return self.deadline - self.durable_at


DURATIONS = ("to_stop", "to_durable", "to_node", "to_training", "total", "spare")
"""The properties of an interruption that are durations."""


def interruptions_of(entries: Sequence[Entry], state: RunState) -> list[Interruption]:
    """The ends of attempts before the run was finished, oldest first. An attempt that goes on has none."""
    restored_at = restored_moments(entries, state)
    ignored = {entry.n for entry in state.ignored}
    notices: dict[int, list[tuple[float, Notice]]] = {}
    for entry in entries:
        if isinstance(entry.event, Notice) and entry.n not in ignored:
            notices.setdefault(entry.attempt, []).append((entry.at, entry.event))
    attempts = state.trainings
    return [
        _interruption(record, attempts[i + 1 :], notices.get(record.attempt, []), restored_at)
        for i, record in enumerate(attempts)
        if _was_cut(record, state)
    ]


def _was_cut(record: AttemptRecord, state: RunState) -> bool:
    if record.ended is None:
        return record is not state.owner
    return record.ended.cause != FINISHED


def _interruption(
    record: AttemptRecord,
    later: Sequence[AttemptRecord],
    notices: Sequence[tuple[float, Notice]],
    restored_at: Mapping[int, float],
) -> Interruption:
    told = _notice_that_ended(record, notices)
    newest = max(record.committed, key=lambda commit: commit.step, default=None)
    stop = record.ended.last_step if record.ended is not None and record.ended.last_step >= 0 else None
    saved = newest if newest is not None and newest.step == stop else None
    resumed = next((other for other in later if other.attempt in restored_at), None)
    return Interruption(
        attempt=record.attempt,
        cause=UNKNOWN if record.ended is None else record.ended.cause,
        source="" if told is None else told[1].source,
        notice_at=None if told is None else told[0],
        deadline=None if told is None else told[1].deadline,
        stop_step=stop,
        stop_at=None if saved is None else saved.at - saved.event.seconds,
        durable_step=_durable_step(record, newest),
        durable_at=None if newest is None else newest.at,
        left_at=record.last_seen_at,
        next_attempt=later[0].attempt if later else None,
        node_at=later[0].claimed_at if later else None,
        training_at=None if resumed is None else restored_at[resumed.attempt],
        resumed_step=None if resumed is None else restored_step(resumed),
    )


def _durable_step(record: AttemptRecord, newest: CheckpointRecord | None) -> int | None:
    if newest is not None:
        return newest.step
    return record.restored_step if record.restored_step >= 0 else None


def _notice_that_ended(record: AttemptRecord, notices: Sequence[tuple[float, Notice]]) -> tuple[float, Notice] | None:
    """The first notice whose deadline the attempt did not outlive: one that it outlived did not end it. Where it
    outlived all, it left late, and the last one is meant."""
    for told in notices:
        if told[1].deadline >= record.last_seen_at:
            return told
    return notices[-1] if notices else None


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else max(0.0, end - begin)
