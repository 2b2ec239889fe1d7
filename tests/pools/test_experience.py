"""What own journals say of pools."""

from __future__ import annotations

import pytest

from unbroken.journal import Entry, Event, Origin, RunState
from unbroken.journal.events import AttemptClaimed, AttemptEnded, Note
from unbroken.pools.experience import experience_of
from unbroken.pools.ranking import Experience

A, B = Origin("host", 1, pool="p4d/a/spot"), Origin("host", 1, pool="p4d/b/spot")


def folded(*written: tuple[float, int, Origin, Event]) -> RunState:
    state = RunState()
    for n, (hours, attempt, origin, event) in enumerate(written, 1):
        state.apply(Entry(n, attempt, f"claim-{attempt}", f"nonce-{n}", hours * 3600.0, origin, event))
    return state


def test_hours_and_interruptions_are_counted_by_pool() -> None:
    state = folded(
        (0.0, 1, A, AttemptClaimed()),
        (2.0, 1, A, AttemptEnded("interrupted", 10)),
        (3.0, 2, B, AttemptClaimed()),
        (4.5, 2, B, Note("restored", "")),  # killed without a word
        (5.0, 3, A, AttemptClaimed()),
        (6.0, 3, A, AttemptEnded("crashed", 20)),  # the program's own doing
        (6.5, 4, Origin("host", 1), AttemptClaimed()),
        (7.0, 4, Origin("host", 1), AttemptEnded("interrupted", 20)),
        (8.0, 5, B, AttemptClaimed()),
        (9.0, 5, B, Note("restored", "")),  # goes on
    )
    found = experience_of([state])
    assert found == {A.pool: Experience(3.0, 1, 2), B.pool: Experience(2.5, 1, 2)}
    both = experience_of([state, state])[A.pool]
    assert (both.hours, both.interruptions) == (pytest.approx(6.0), 2)


def test_a_run_that_has_not_begun_has_met_nothing() -> None:
    assert experience_of([RunState()]) == {}
