"""How often a run was interrupted, by its journal."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.journal import Entry, Event, Origin, RunState
from unbroken.journal.events import AttemptClaimed, AttemptEnded, CheckpointCommitted
from unbroken.policy.observed_hazard import ENOUGH, observed_hazard

HOUR = 3600.0


def journal(*attempts: tuple[str, float, bool]) -> RunState:
    """Attempts of (cause of the end or "", hours, whether the last step was saved), and one that runs."""
    state, at, n = RunState(), 0.0, 0

    def write(attempt: int, event: Event) -> None:
        nonlocal n
        n += 1
        state.apply(Entry(n, attempt, f"claim-{attempt}", f"nonce-{n}", at, Origin("host", 1), event))

    for number, (cause, hours, saved) in enumerate(attempts, 1):
        write(number, AttemptClaimed())
        at += hours * HOUR
        write(number, CheckpointCommitted(10 * number + (5 if saved else 0), f"manifests/{number}", "sha", 1, 1))
        if cause:
            write(number, AttemptEnded(cause, 10 * number + 5))
    write(len(attempts) + 1, AttemptClaimed())
    return state


def test_a_few_interruptions_say_nothing_yet() -> None:
    assert observed_hazard(RunState()) is None
    assert observed_hazard(journal(*[("interrupted", 2.0, True)] * (ENOUGH - 1))) is None


def test_interruptions_are_counted_by_the_hour_and_one_more_is_assumed() -> None:
    hazard = observed_hazard(journal(*[("interrupted", 2.0, True)] * 4))
    assert hazard is not None
    assert hazard.per_hour == pytest.approx(5 / 8)
    assert hazard.notice_success == pytest.approx(4 / 5)
    assert hazard.failures_per_hour == 0.0
    assert hazard.mean_seconds == pytest.approx(8 * HOUR)


def test_a_notice_whose_save_came_too_late_is_no_success() -> None:
    hazard = observed_hazard(journal(("interrupted", 1.0, True), *[("interrupted", 1.0, False)] * 3))
    assert hazard is not None
    assert hazard.notice_success == pytest.approx(1 / 5)


def test_an_attempt_that_vanished_or_crashed_was_not_announced() -> None:
    hazard = observed_hazard(journal(("", 1.0, False), ("crashed", 1.0, False), ("interrupted", 2.0, True)))
    assert hazard is not None
    assert hazard.failures_per_hour == pytest.approx(2 / 4)


@pytest.mark.parametrize("cause", ["failed", "left", "finished", "stopped-no-progress"])
def test_an_end_by_the_program_or_its_owner_is_no_interruption(cause: str) -> None:
    assert observed_hazard(journal(*[(cause, 1.0, True)] * 10)) is None


def test_the_attempt_that_runs_now_is_not_over() -> None:
    state = journal(*[("", 1.0, False)] * (ENOUGH - 1))
    assert state.owner is not None
    assert state.owner.ended is None
    assert observed_hazard(state) is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["interrupted", "crashed", "", "failed"]), st.floats(0.01, 100.0), st.booleans())
    )
)
def test_it_is_a_usable_hazard_whatever_has_happened(attempts: list[tuple[str, float, bool]]) -> None:
    hazard = observed_hazard(journal(*attempts))
    if hazard is not None:
        assert 0.0 <= hazard.notice_success < 1.0
        assert 0.0 < hazard.mean_seconds < math.inf
