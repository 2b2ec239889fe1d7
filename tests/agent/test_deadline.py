from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.agent.deadline import Deadline, Pressure, backoff


@pytest.mark.parametrize(
    ("given_seconds", "terminate", "kill"),
    [(120, 110.0, 117.0), (30, 25.5, 28.5), (4, 3.4, 3.8), (600, 590.0, 597.0)],
)
def test_margins_shrink_with_the_time_given(given_seconds: float, terminate: float, kill: float) -> None:
    deadline = Deadline(0.0, given_seconds)
    assert (deadline.terminate_at, deadline.kill_at) == (pytest.approx(terminate), pytest.approx(kill))


def test_pressure_rises_from_nothing_to_sigterm_to_sigkill() -> None:
    deadline = Deadline(1000.0, 1120.0)
    assert deadline.pressure(1000.0) is Pressure.NONE
    assert deadline.pressure(1109.9) is Pressure.NONE
    assert deadline.pressure(1110.0) is Pressure.TERMINATE
    assert deadline.pressure(1117.0) is Pressure.KILL
    assert deadline.pressure(2000.0) is Pressure.KILL


def test_deadline_that_has_passed_kills_at_once() -> None:
    assert Deadline(1000.0, 1000.0).pressure(1000.0) is Pressure.KILL
    assert Deadline(1000.0, 900.0).pressure(1000.0) is Pressure.KILL


def test_next_change_is_when_the_pressure_rises() -> None:
    deadline = Deadline(0.0, 120.0)
    assert deadline.next_change(0.0) == 110.0
    assert deadline.next_change(110.0) == 7.0
    assert deadline.next_change(117.0) is None


@given(st.floats(0, 1e6), st.floats(0.01, 1e5))
def test_sigterm_comes_before_sigkill_then_the_last_upload_and_all_before_the_deadline(
    heard_at: float, seconds: float
) -> None:
    deadline = Deadline(heard_at, heard_at + seconds)
    assert heard_at <= deadline.terminate_at <= deadline.kill_at <= deadline.leave_at <= deadline.at
    assert deadline.terminate_at - heard_at >= 0.8 * seconds - 1e-6  # most of the time belongs to the save


def test_backoff_doubles_up_to_its_limit() -> None:
    assert [backoff(n, 1.0, 60.0) for n in (0, 1, 2, 3, 6, 7, 8, 10_000)] == [1, 1, 2, 4, 32, 60, 60, 60]
