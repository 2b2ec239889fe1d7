"""How much of the work is behind a run, by its journal."""

from __future__ import annotations

from unbroken.journal import RunState
from unbroken.journal.events import Note
from unbroken.journal.state import AttemptRecord


def hours_done(state: RunState, work: float, steps: int | None, hour: float = 3600.0) -> float:
    """Hours of training that are durable: what an interruption may cost is not among them.

    Args:
        work: hours of the whole training.
        steps: of the whole training. With it, progress is the share of the steps; without, the time that the steps
            took which led to the newest checkpoint.
        hour: seconds of an hour.
    """
    if state.finished_step is not None:
        return work
    if not state.checkpoints:
        return 0.0
    newest = state.checkpoints[-1].step
    return work * min(1.0, newest / steps) if steps is not None else _seconds_that_count(state, newest) / hour


def _seconds_that_count(state: RunState, newest: int) -> float:
    """Of each attempt until its last commit from which a later one went on; steps that were done again count once."""
    total, reached = 0.0, newest
    for record in reversed(state.trainings):
        commits = [commit for commit in record.committed if commit.step <= reached]
        if not commits or reached <= 0:
            continue
        last = max(commits, key=lambda commit: commit.step)
        total += max(0.0, last.at - last.event.seconds - _began(state, record))
        reached = max(0, record.restored_step)
    return total


def _began(state: RunState, record: AttemptRecord) -> float:
    """When the attempt could train: its state was restored."""
    restored = (
        entry.at
        for entry in state.notes
        if entry.attempt == record.attempt and isinstance(entry.event, Note) and entry.event.topic == "restored"
    )
    return next(restored, record.claimed_at)
