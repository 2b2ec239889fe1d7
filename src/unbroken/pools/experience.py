"""What own runs met in each pool, from their journals. Hours."""

from __future__ import annotations

from collections.abc import Iterable

from unbroken.journal import RunState
from unbroken.journal.state import AttemptRecord
from unbroken.pools.ranking import Experience


def experience_of(states: Iterable[RunState]) -> dict[str, Experience]:
    """By the name of the pool; attempts that do not say where they ran are left out."""
    found: dict[str, Experience] = {}
    for state in states:
        for record in state.trainings:
            if not record.origin.pool:
                continue
            before = found.get(record.origin.pool, Experience())
            found[record.origin.pool] = Experience(
                before.hours + max(0.0, record.last_seen_at - record.claimed_at) / 3600.0,
                before.interruptions + _was_interrupted(record, state),
                before.attempts + 1,
            )
    return found


def _was_interrupted(record: AttemptRecord, state: RunState) -> bool:
    """By the provider, as far as the journal tells: it was announced, or the attempt was replaced without a word."""
    if record.ended is not None:
        return record.ended.cause == "interrupted"
    return record is not state.owner
