"""The interval between saves that loses the least time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.policy.interval import best_interval, lambert_w0
from unbroken.policy.observed_hazard import Hazard

MINUTE = 60.0
HOUR = 3600.0


@given(st.floats(-1.0 / math.e, 0.0, exclude_max=True))
def test_w_times_its_exponential_is_the_argument(x: float) -> None:
    w = lambert_w0(x)
    assert -1.0 <= w <= 0.0
    assert w * math.exp(w) == pytest.approx(x, rel=4e-15, abs=5e-324)


@given(st.floats(-1.0, 0.0))
def test_the_argument_comes_back_from_w_times_its_exponential(w: float) -> None:
    x = w * math.exp(w)
    if x < 0.0:
        # Near -1 the function is flat, and the digits of w are not in x.
        assert lambert_w0(x) == pytest.approx(w, rel=1e-12, abs=4e-8)


@pytest.mark.parametrize("x", [0.0, 1.0, -0.5, -math.inf, math.nan])
def test_arguments_off_the_branch_are_refused(x: float) -> None:
    with pytest.raises(ValueError, match="is not in"):
        lambert_w0(x)


def test_the_branch_point_is_met() -> None:
    assert lambert_w0(-1.0 / math.e) == pytest.approx(-1.0, abs=1e-7)


@pytest.mark.parametrize(("mean_hours", "minutes"), [(24, 116.7), (6, 56.7), (0.25, 9.2)])
def test_dalys_table_is_met(mean_hours: float, minutes: float) -> None:
    assert best_interval(5 * MINUTE, mean_hours * HOUR) / MINUTE == pytest.approx(minutes, abs=0.05)


@given(st.floats(1e-6, 0.1), st.floats(1.0, 1e6))
def test_the_exact_form_agrees_with_dalys_series(ratio: float, mean: float) -> None:
    stall = 2.0 * mean * ratio
    series = math.sqrt(2.0 * stall * mean) * (1.0 + math.sqrt(ratio) / 3.0 + ratio / 9.0) - stall
    assert best_interval(stall, mean) == pytest.approx(series, rel=0.01)


@given(st.floats(1e-3, 1e4), st.floats(1.0, 1e7), st.floats(0.5, 2.0))
def test_no_other_interval_costs_less(stall: float, mean: float, factor: float) -> None:
    def cost(interval: float) -> float:
        """Wall time for a unit of work under interruptions without memory (Daly's model, restarts left out)."""
        try:
            return mean * math.expm1((interval + stall) / mean) / interval
        except OverflowError:
            return math.inf

    best = best_interval(stall, mean)
    assert 0.0 < best <= mean
    assert cost(best) <= cost(best * factor) * (1.0 + 1e-9)


def test_best_interval_of_a_stall_that_is_tiny_against_the_mean_keeps_its_digits() -> None:
    assert best_interval(1e-3, 1e12) == pytest.approx(math.sqrt(2e9), rel=1e-6)


def test_without_interruptions_no_interval_is_long_enough() -> None:
    assert best_interval(5.0, Hazard(0.0).mean_seconds) == math.inf


def test_interruptions_that_are_heard_in_time_lose_nothing_and_do_not_count() -> None:
    assert Hazard(2.0).mean_seconds == 1800.0
    assert Hazard(2.0, notice_success=0.75).mean_seconds == 7200.0
    assert Hazard(2.0, notice_success=1.0).mean_seconds == math.inf
    assert Hazard(2.0, notice_success=1.0, failures_per_hour=0.5).mean_seconds == 7200.0
