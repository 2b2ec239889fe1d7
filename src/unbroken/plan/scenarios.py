"""The ways in which a job could be run, and what is to be expected of each. Hours and money."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unbroken.plan.inputs import Inputs
from unbroken.policy.cost import Forecast, Setting, best_setting, chance_at_first_try, forecast
from unbroken.policy.montecarlo import draw

USUAL_INTERVAL = 0.5
"""Hours between the usual saves, where the job does not say."""


@dataclass(frozen=True)
class Way:
    """A scenario in a pool."""

    scenario: str
    pool: str
    setting: Setting


@dataclass(frozen=True)
class Row:
    """What is expected of it. ``finish`` and its quantiles are hours since the launch."""

    way: Way
    forecast: Forecast
    cost_p5: float
    cost_p95: float
    finish_p5: float
    finish_p95: float
    lost_p95: float
    on_time: float | None
    """Chance to meet the deadline; None without one."""
    first_try: float
    """Chance that it is never interrupted."""


def ways_of(
    work: float, inputs: Inputs, spot: Sequence[tuple[str, float]], on_demand: tuple[str, float],
    interval: float | None = None, most: float = math.inf,
) -> list[Way]:  # fmt: skip
    """On demand; and on each spot pool without saves, with the usual saves, and with Unbroken's.

    Args:
        spot: pools and their prices of all nodes for an hour.
        interval: between saves; by default half an hour for the usual ones and the best for Unbroken's.
        most: for the best: the largest loss that is borne.
    """
    pool, price = on_demand
    ours = {"stall": inputs.stall.value, "upload": inputs.upload.value, "restart": inputs.restart.value}
    ways = [Way("on-demand", pool, Setting(work, price, restart=inputs.restart.value, wait=0.0))]
    for pool, price in spot:
        risk = {"hazard": inputs.hazard.value, "wait": inputs.wait.value, "restart": inputs.restart.value}
        bare = Setting(work, price, **risk)
        blocking = inputs.blocking.value
        usual = Setting(work, price, interval=interval or USUAL_INTERVAL, stall=blocking, upload=blocking, **risk)
        own = Setting(work, price, notice_success=inputs.notice_success.value, **{**risk, **ours})
        own = best_setting(own, most) if interval is None else Setting(**{**vars(own), "interval": interval})
        ways += [Way("unbroken", pool, own), Way("usual saves", pool, usual), Way("no checkpoints", pool, bare)]
    return ways


def plan_rows(ways: Sequence[Way], deadline: float | None, trainings: int, seed: int) -> list[Row]:
    """A row for each, in their order. The mean is that of the closed form, the rest of so many drawn trainings."""
    return [_row(way, deadline, trainings, seed) for way in ways]


def _row(way: Way, deadline: float | None, trainings: int, seed: int) -> Row:
    drawn = draw(way.setting, trainings, seed)
    cost = drawn.quantiles(drawn.paid, (0.05, 0.95))
    finish = drawn.quantiles(drawn.finish, (0.05, 0.95))
    return Row(
        way=way,
        forecast=forecast(way.setting),
        cost_p5=cost[0] * way.setting.price,
        cost_p95=cost[1] * way.setting.price,
        finish_p5=finish[0],
        finish_p95=finish[1],
        lost_p95=drawn.quantiles(drawn.lost, (0.95,))[0],
        on_time=None if deadline is None else drawn.chance_by(deadline),
        first_try=chance_at_first_try(way.setting),
    )


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What must not be overlooked, in words."""
    on_demand = rows[0].forecast.cost
    found = []
    for row in rows:
        expected = row.forecast
        if row.way.scenario != "no checkpoints" or row.first_try > 0.99:
            continue
        hours = "for ever" if math.isinf(expected.finish) else f"{expected.paid:.0f} paid hours"
        money = "no end of money" if math.isinf(expected.cost) else f"{expected.cost:.0f}"
        found.append(
            f"{row.way.pool} without checkpoints is not cheap: {hours} and {money} are expected, against "
            f"{on_demand:.0f} on demand; {row.first_try:.0%} of the trainings come through at the first try"
        )
    return found
