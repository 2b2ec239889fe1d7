"""The rows of a plan."""

from __future__ import annotations

import math

import pytest

from unbroken.plan import inputs_of, plan_rows
from unbroken.plan.scenarios import verdicts, ways_of

INPUTS = inputs_of({"hazard": 3.0 / 48.0}, None)
POOLS = [("p4d/a/spot", 8.3333), ("p4d/b/spot", 9.0)]


def test_each_pool_has_its_three_ways_and_on_demand_comes_first() -> None:
    ways = ways_of(48.0, INPUTS, POOLS, ("on-demand", 25.0))
    assert [(way.scenario, way.pool) for way in ways] == [
        ("on-demand", "on-demand"),
        *[(scenario, pool) for pool, _ in POOLS for scenario in ("unbroken", "usual saves", "no checkpoints")],
    ]
    assert ways[1].setting.interval * 60.0 == pytest.approx(40.0, rel=0.01)
    assert ways[2].setting.interval == 0.5


def test_an_interval_that_is_said_holds_for_all_saves() -> None:
    ways = ways_of(48.0, INPUTS, POOLS[:1], ("on-demand", 25.0), 0.25)
    assert [way.setting.interval for way in ways[1:]] == [0.25, 0.25, math.inf]


def test_a_row_has_the_mean_between_its_quantiles_and_the_chance_of_its_deadline() -> None:
    rows = plan_rows(ways_of(48.0, INPUTS, POOLS[:1], ("on-demand", 25.0)), 50.0, 4_000, 0)
    for row in rows[1:]:
        assert row.cost_p5 <= row.forecast.cost <= row.cost_p95
        assert row.finish_p5 <= row.forecast.finish <= row.finish_p95
    on_demand, own, usual, bare = (row.on_time for row in rows)
    assert on_demand == 1.0
    assert own is not None
    assert usual is not None
    assert bare is not None
    assert own > usual
    assert own > bare
    assert all(row.on_time is None for row in plan_rows(ways_of(48.0, INPUTS, [], ("x", 1.0)), None, 100, 0))


def test_a_plan_without_checkpoints_is_not_called_cheap() -> None:
    rows = plan_rows(ways_of(48.0, INPUTS, POOLS[:1], ("on-demand", 25.0)), None, 1_000, 0)
    (text,) = verdicts(rows)
    assert "p4d/a/spot without checkpoints is not cheap: 308 paid hours" in text
    assert "against 1204 on demand" in text
    wild = plan_rows(ways_of(480.0, inputs_of({"hazard": 2.0}, None), POOLS[:1], ("x", 25.0)), None, 100, 0)
    assert "for ever" in verdicts(wild)[0]
    calm = plan_rows(ways_of(48.0, inputs_of({"hazard": 0.0}, None), POOLS[:1], ("x", 25.0)), None, 100, 0)
    assert verdicts(calm) == []
