"""The closed form: the reference table cell by cell, and plain sense."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.policy.cost import (
    Setting,
    best_setting,
    chance_at_first_try,
    forecast,
    forecast_of,
    worst_of,
)

MINUTE = 1.0 / 60.0
SPOT = Setting(work=48.0, price=25.0 / 3.0, hazard=3.0 / 48.0)
HALF_HOURLY = replace(SPOT, interval=0.5)
BLOCKING = replace(HALF_HOURLY, stall=2.0 * MINUTE, restart=9.0 * MINUTE)
OVERLAPPED = replace(
    SPOT, stall=5.0 / 3600.0, upload=90.0 / 3600.0, notice_success=0.9, interval=40.0 * MINUTE, restart=9.0 * MINUTE
)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (forecast(Setting(48.0, 25.0)).cost, 1200.0),
        (forecast(replace(SPOT, hazard=0.0)).cost, 400.0),
        (forecast_of(HALF_HOURLY, 3.0).cost, 406.0),
        (worst_of(HALF_HOURLY, 3.0).cost, 412.5),
        (forecast_of(BLOCKING, 3.0).cost, 437.0),
        (forecast_of(OVERLAPPED, 3.0).cost, 406.0),
        (forecast(SPOT).cost, 2545.0),
        (forecast(SPOT).paid, 305.0),
    ],
    ids=["on-demand", "calm", "expected", "worst", "blocking", "overlapped", "no checkpoints", "hours"],
)
def test_a_cell_of_the_reference_table(cost: float, expected: float) -> None:
    assert cost == pytest.approx(expected, rel=0.01)


def test_the_hours_lost_in_the_reference_table() -> None:
    assert forecast_of(HALF_HOURLY, 3.0).rework == pytest.approx(0.75)
    assert worst_of(HALF_HOURLY, 3.0).rework == pytest.approx(1.5)
    assert forecast_of(OVERLAPPED, 3.0).rework == pytest.approx(0.11, abs=0.005)
    assert forecast_of(replace(OVERLAPPED, farewell=MINUTE), 3.0).rework == pytest.approx(0.15, abs=0.005)
    assert chance_at_first_try(SPOT) == pytest.approx(0.05, abs=0.001)


def test_the_reference_needs_a_restart_of_three_quarters_of_an_hour() -> None:
    """Its 460 is reached with blocking saves where each of four starts takes so long."""
    slow = replace(BLOCKING, restart=48.5 * MINUTE)
    assert forecast_of(slow, 3.0).cost == pytest.approx(460.0, rel=0.01)


_settings = st.builds(
    Setting,
    work=st.floats(1.0, 200.0), price=st.floats(0.1, 50.0), hazard=st.floats(0.0, 0.5), interval=st.floats(0.05, 4.0),
    stall=st.floats(0.0, 0.1), upload=st.floats(0.0, 0.1), restart=st.floats(0.0, 0.3),
    notice_success=st.floats(0.0, 1.0), wait=st.floats(0.0, 1.0),
)  # fmt: skip


@given(_settings)
def test_the_parts_make_the_whole_and_none_is_negative(setting: Setting) -> None:
    found = forecast(setting)
    parts = (found.work, found.saves, found.rework, found.restarts, found.waiting)
    assert all(part >= 0.0 for part in parts)
    if math.isfinite(found.finish):
        assert sum(parts) == pytest.approx(found.finish)
        assert found.cost == pytest.approx(found.paid * setting.price)
        assert found.interruptions == pytest.approx(setting.hazard * found.paid, rel=1e-6, abs=1e-9)


@given(_settings, st.floats(0.01, 0.5))
def test_more_interruptions_never_cost_less(setting: Setting, more: float) -> None:
    wilder = replace(setting, hazard=setting.hazard + more)
    assert forecast(wilder).cost >= forecast(setting).cost * (1.0 - 1e-12)
    bare, bare_wilder = replace(setting, interval=math.inf), replace(wilder, interval=math.inf)
    assert forecast(bare_wilder).cost >= forecast(bare).cost * (1.0 - 1e-12)


@given(_settings.filter(lambda each: each.lossy_hazard > 1e-3 and each.stall > 1e-4), st.floats(0.3, 3.0))
def test_no_other_interval_costs_less_than_the_best(setting: Setting, factor: float) -> None:
    """But for whole numbers of saves, and for what the first order of the overhead leaves out."""
    best = best_setting(replace(setting, upload=0.0))
    other = replace(best, interval=best.interval * factor)
    if math.isfinite(forecast(best).cost) and best.interval < setting.work / 4.0:
        slack = best.stall * best.price + 0.02 * forecast(best).cost
        assert forecast(best).cost <= forecast(other).cost + slack


@given(_settings)
def test_without_saves_the_parts_make_the_whole_too(setting: Setting) -> None:
    found = forecast(replace(setting, interval=math.inf))
    if math.isfinite(found.finish):
        parts = (found.work, found.rework, found.restarts, found.waiting)
        assert all(part >= -1e-9 for part in parts)
        assert sum(parts) == pytest.approx(found.finish)


def test_the_best_interval_is_bounded_and_never_none_at_all() -> None:
    assert best_setting(OVERLAPPED).interval == pytest.approx(40.0 * MINUTE, rel=0.01)
    assert best_setting(OVERLAPPED, most=0.25).interval == 0.25
    assert best_setting(replace(OVERLAPPED, upload=0.5), most=0.25).interval == 0.5
    always = best_setting(replace(OVERLAPPED, notice_success=1.0))
    assert always.interval == pytest.approx((2.0 * always.stall * 1000.0) ** 0.5, rel=0.01)


def test_interruptions_that_undo_more_than_is_done_are_endless() -> None:
    assert forecast(replace(BLOCKING, hazard=4.0)).cost == math.inf
    assert forecast(replace(SPOT, hazard=20.0)).finish == math.inf


@pytest.mark.parametrize("wrong", [{"work": 0.0}, {"price": -1.0}, {"notice_success": 1.5}, {"interval": 0.0}])
def test_what_cannot_be_planned_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(SPOT, **wrong)
    assert caught.value.kind == "plan"
