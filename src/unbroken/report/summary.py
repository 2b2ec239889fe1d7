"""How a run stands, in one object: what ``unbroken status`` prints."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from unbroken.journal import Entry, RunState
from unbroken.journal.events import Note
from unbroken.report.timeline import UNKNOWN, AttemptLine, build_timeline, lost_seconds


class DurableStep(msgspec.Struct, frozen=True):
    """The newest committed checkpoint. ``age`` is in seconds, ``size`` in bytes of state."""

    step: int
    attempt: int
    at: float
    age: float
    size: int


class Remark(msgspec.Struct, frozen=True):
    """Something that went wrong and was written down, such as a failed save or a damaged checkpoint."""

    topic: str
    attempt: int
    at: float
    text: str


class Announced(msgspec.Struct, frozen=True):
    """An interruption that was announced to an attempt."""

    attempt: int
    source: str
    reason: str
    deadline: float


class RunSummary(msgspec.Struct, frozen=True):
    """A run at one moment. Moments are wall-clock seconds."""

    uri: str
    run: str
    created_at: float
    state: str
    """``new`` (no attempt yet), ``imported`` (the same, and a file's weights are there), ``finished``, ``open`` (the
    newest attempt goes on), or why that attempt ended. Attempts that did not train are passed over."""
    finished_step: int | None
    durable: DurableStep | None
    attempts: list[AttemptLine]
    attempts_without_progress: int
    steps_repeated: int
    lost_seconds: float
    notices: list[Announced]
    remarks: list[Remark]
    ignored_entries: int
    """Journal entries of attempts that were already replaced; they count for nothing."""


_ROUTINE = {"restored"}
"""Topics of notes that report no trouble."""


def summarise(
    uri: str, run: str, created_at: float, entries: Sequence[Entry], state: RunState, now: float
) -> RunSummary:
    """Say how a run stands at ``now``."""
    timeline = build_timeline(entries, state)
    return RunSummary(
        uri=uri,
        run=run,
        created_at=created_at,
        state=_state(state),
        finished_step=state.finished_step,
        durable=_durable(state, now),
        attempts=timeline,
        attempts_without_progress=state.attempts_without_progress(),
        steps_repeated=sum(line.steps_repeated for line in timeline),
        lost_seconds=lost_seconds(timeline),
        notices=[
            Announced(number, notice.source, notice.reason, notice.deadline)
            for number in sorted(state.attempts)
            for notice in state.attempts[number].notices
        ],
        remarks=[
            Remark(entry.event.topic, entry.attempt, entry.at, entry.event.text)
            for entry in state.notes
            if isinstance(entry.event, Note) and entry.event.topic not in _ROUTINE
        ],
        ignored_entries=len(state.ignored),
    )


def _state(state: RunState) -> str:
    if not state.trainings:
        return "imported" if state.commits else "new"
    if state.finished_step is not None:
        return "finished"
    newest = state.trainings[-1]
    if newest.ended is not None:
        return newest.ended.cause
    return "open" if newest is state.owner else UNKNOWN


def _durable(state: RunState, now: float) -> DurableStep | None:
    if not state.checkpoints:
        return None
    newest = state.checkpoints[-1]
    return DurableStep(newest.step, newest.attempt, newest.at, max(0.0, now - newest.at), newest.event.size)
