"""The cheapest plan to the deadline by a dynamic programme, for the rates at which spot comes and goes. Needs numpy.

State: time left, slack, spot up or down and for how long, and what runs. Within the programme the deadline is hard and
the safety net holds, so its costs are those of what is done. Use it as ``SafetyNet(Programme(...))``: outside its
table, as in a run that is late, a programme alone has nothing to say. Hours throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unbroken.policy.decision import Number, Rule, Situation, Terms, Tier, slack, time_left
from unbroken.policy.stays import StayRates

_STEPS = 300
"""Steps to the deadline, about: finer ones change costs by less than the rates are known."""
_EVEN = 1.001
"""Between ways that cost the same within the grid's error, the one that finishes earlier."""
_WAIT_UP, _SPOT, _START_UP, _WAIT_DOWN, _START_DOWN, _STAY, _RETURN = range(7)
"""Columns of the table: idle while spot is up (wait, spot, on-demand) or down (wait, on-demand), on-demand while it is
up (stay, spot)."""


class Programme:
    """Solved when made (some tenths of a second); deciding is a look at its table."""

    name = "programme"

    def __init__(self, terms: Terms, rates: StayRates, steps: int = _STEPS) -> None:
        self.terms, self.rates = terms, rates
        self._grid = _Grid.of(terms, rates, steps)
        self._table = _solve(self._grid, terms, rates)

    def rules(self, terms: Terms, now: Situation) -> Sequence[Rule]:
        costs = self._costs(terms, now)
        idle, paid = now.tier == Tier.IDLE, now.tier == Tier.ON_DEMAND
        up, down = now.spot_up & True, now.spot_up == False  # noqa: E712 - an array of truth values has no `not`
        wait_up, spot, start_up, wait_down, start_down, stay, back = (costs[..., column] for column in range(7))
        return [
            Rule("spot is cheapest", idle & up & (spot <= wait_up * _EVEN) & (spot <= start_up), Tier.SPOT),
            Rule("waiting is cheapest", idle & up & (wait_up <= start_up), Tier.IDLE),
            Rule("waiting is cheapest", idle & down & (wait_down <= start_down), Tier.IDLE),
            Rule("going back to spot is cheapest", paid & up & (back < stay), Tier.SPOT),
            Rule("on-demand is cheapest", True, Tier.ON_DEMAND),
        ]

    def numbers(self, terms: Terms, now: Situation) -> Mapping[str, Number]:
        """Expected cost to the end of the ways that are open."""
        costs = self._costs(terms, now)
        if now.tier == Tier.ON_DEMAND:
            return {"cost_stay": costs[_STAY], "cost_spot": costs[_RETURN]} if now.spot_up else {}
        if now.tier == Tier.IDLE and now.spot_up:
            return {"cost_wait": costs[_WAIT_UP], "cost_spot": costs[_SPOT], "cost_on_demand": costs[_START_UP]}
        return {"cost_wait": costs[_WAIT_DOWN], "cost_on_demand": costs[_START_DOWN]}

    def _costs(self, terms: Terms, now: Situation) -> Any:
        """The seven columns, interpolated between the grid's points: shape (..., 7)."""
        grid = self._grid
        time = np.clip(np.asarray(time_left(terms, now)) / grid.step, 0.0, self._table.shape[0] - 1.001)
        spare = np.clip(np.asarray(slack(terms, now)) / grid.step, 0.0, self._table.shape[1] - 1.001)
        age = np.minimum(np.asarray(now.age) / grid.step + 1e-6, grid.ages - 1).astype(np.int64)
        low, left = time.astype(np.int64), spare.astype(np.int64)
        up, right = (time - low)[..., None], (spare - left)[..., None]
        table = self._table
        near = table[low, left, age] * (1.0 - right) + table[low, left + 1, age] * right
        far = table[low + 1, left, age] * (1.0 - right) + table[low + 1, left + 1, age] * right
        return near * (1.0 - up) + far * up


@dataclass(frozen=True)
class _Grid:
    step: float
    """Hours of a step; a changeover is a whole number of them, or less than one."""
    times: int
    """Steps to the deadline, rounded up."""
    slacks: int
    ages: int
    """Steps until the oldest bucket of age begins, and one."""
    share: float
    """Of the first step after a start that is lost to the changeover."""
    more: int
    """Further steps that are lost whole."""

    @classmethod
    def of(cls, terms: Terms, rates: StayRates, steps: int) -> _Grid:
        coarse = max(terms.allowed, terms.work) / steps
        whole = max(1, math.floor(terms.changeover / coarse))
        step = terms.changeover / whole if terms.changeover >= coarse else coarse
        spare = max(0.0, terms.allowed - terms.work)
        return cls(
            step=step,
            times=math.ceil(terms.allowed / step) + 1,
            slacks=math.ceil(spare / step) + 2,
            ages=math.ceil(rates.edges[-1] / step) + 1,
            share=min(1.0, terms.changeover / step),
            more=whole - 1 if terms.changeover >= coarse else 0,
        )


def _solve(grid: _Grid, terms: Terms, rates: StayRates) -> Any:
    """The table of costs: shape (times, slacks, ages, 7), from the deadline backwards."""
    spot, paid = terms.spot_price * grid.step, terms.on_demand_price * grid.step
    late = 3.0 * terms.on_demand_price * max(terms.allowed, terms.work)
    ends = [_chances(grid, rates, up=up) for up in (True, False)]
    held = (np.arange(grid.slacks) * grid.step < terms.net - 1e-9)[:, None]
    table = np.zeros((grid.times, grid.slacks, grid.ages, 7), dtype=np.float32)
    layer = _Layer.deadline(grid)
    for time in range(1, grid.times):
        columns, layer = _before(layer, grid, (spot, paid, late), ends, held)
        layer.finish(time)
        table[time] = columns
    return table


def _chances(grid: _Grid, rates: StayRates, *, up: bool) -> Any:
    ages = [rates.end_chance(up=up, age=age * grid.step, hours=grid.step) for age in range(grid.ages - 1)]
    return np.array([*ages, rates.end_chance(up=up, age=rates.edges[-1] + 1.0, hours=grid.step)])


@dataclass
class _Layer:
    """Costs to the end at one time left; each of shape (slacks, ages), a list for each step of a changeover to come."""

    idle_up: Any
    idle_down: Any
    spot: list[Any]
    paid_up: list[Any]
    paid_down: list[Any]

    @classmethod
    def deadline(cls, grid: _Grid) -> _Layer:
        """No time is left and there is slack, so the work is done."""
        end = np.zeros((grid.slacks, grid.ages))
        phases = [end] * (grid.more + 1)
        return cls(end, end, phases, phases, phases)

    def finish(self, time: int) -> None:
        """Where the slack is all the time that is left, the work is done and nothing more is paid."""
        for costs in (self.idle_up, self.idle_down, *self.spot, *self.paid_up, *self.paid_down):
            costs[time:] = 0.0


def _before(layer: _Layer, grid: _Grid, prices: tuple[float, float, float], ends: Any, held: Any) -> tuple[Any, _Layer]:
    """One step earlier: the columns of the table, and the layer that they make."""
    spot_price, paid_price, late = prices
    up_ends, down_ends = ends

    def after(up: Any, down: Any) -> tuple[Any, Any]:
        """Expected costs when spot is up now, and when it is down, for what follows in each case."""
        older_up, older_down = (np.concatenate((each[:, 1:], each[:, -1:]), axis=1) for each in (up, down))
        return (
            (1.0 - up_ends) * older_up + up_ends * down[:, :1],
            (1.0 - down_ends) * older_down + down_ends * up[:, :1],
        )

    def without_progress(costs: Any, share: float = 1.0) -> Any:
        """A step of which this share makes no progress eats as much of the slack."""
        less = np.concatenate((np.full((1, grid.ages), late), costs[:-1]))
        return costs * (1.0 - share) + less * share

    waits = [without_progress(each) for each in after(layer.idle_up, layer.idle_down)]
    spots = [after(each, layer.idle_down)[0] + spot_price for each in layer.spot]
    paids = [[way + paid_price for way in after(*pair)] for pair in zip(layer.paid_up, layer.paid_down, strict=True)]
    spot_start = without_progress(spots[grid.more], grid.share)
    starts = [without_progress(way, grid.share) for way in paids[grid.more]]
    stays = [paids[0], *[[without_progress(way) for way in each] for each in paids[:-1]]]
    runs = [spots[0], *[without_progress(each) for each in spots[:-1]]]
    columns = np.stack((waits[0], spot_start, starts[0], waits[1], starts[1], stays[0][0], spot_start), axis=-1)
    idle_up = np.where(held, starts[0], np.minimum(np.minimum(waits[0], spot_start), starts[0]))
    idle_down = np.where(held, starts[1], np.minimum(waits[1], starts[1]))
    paid_up = [np.where(held, each[0], np.minimum(each[0], spot_start)) for each in stays]
    return columns, _Layer(idle_up, idle_down, runs, paid_up, [each[1] for each in stays])
