"""How much of a run's work is durable, from its journal."""

from __future__ import annotations

import pytest

from unbroken.engine.progress import hours_done
from unbroken.journal import Entry, Event, Origin, RunState
from unbroken.journal.events import AttemptClaimed, CheckpointCommitted, Note, RunFinished

HOST = Origin("host", 1)


def folded(*written: tuple[float, int, Event]) -> RunState:
    """The state after (seconds, attempt, event)."""
    state = RunState()
    for n, (at, attempt, event) in enumerate(written, 1):
        state.apply(Entry(n, attempt, f"claim-{attempt}", f"nonce-{n}", at, HOST, event))
    return state


def commit(step: int, attempt: int, seconds: float = 0.0) -> CheckpointCommitted:
    return CheckpointCommitted(step, f"manifests/{step}-{attempt}", "sha", 100, 100, seconds=seconds)


def restored(step: int) -> Note:
    return Note("restored", "", {"step": step})


TWICE = folded(
    (0.0, 1, AttemptClaimed()),
    (100.0, 1, restored(0)),
    (3700.0, 1, commit(50, 1)),
    (7300.0, 1, commit(100, 1)),
    (9000.0, 2, AttemptClaimed()),
    (9100.0, 2, restored(50)),  # that of step 100 was damaged
    (12760.0, 2, commit(80, 2, seconds=60.0)),
)


def test_a_new_run_has_done_nothing() -> None:
    assert hours_done(RunState(), 48.0, 1000) == 0.0
    assert hours_done(folded((0.0, 1, AttemptClaimed())), 48.0, None) == 0.0


def test_with_the_number_of_steps_progress_is_their_share() -> None:
    assert hours_done(TWICE, 48.0, 160) == pytest.approx(24.0)
    assert hours_done(TWICE, 48.0, 40) == 48.0  # more steps than were said


def test_without_it_progress_is_the_time_of_the_steps_that_count() -> None:
    """An hour to step 50, and one from there; neither the starts, the upload, nor the steps that were lost."""
    assert hours_done(TWICE, 48.0, None) == pytest.approx(2.0)
    assert hours_done(TWICE, 48.0, None, hour=36.0) == pytest.approx(200.0)


def test_a_finished_run_has_done_all() -> None:
    state = folded((0.0, 1, AttemptClaimed()), (60.0, 1, commit(10, 1)), (61.0, 1, RunFinished(10)))
    assert hours_done(state, 48.0, 1000) == 48.0
