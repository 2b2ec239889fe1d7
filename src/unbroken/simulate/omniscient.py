"""The least that anybody could have paid who knew the trace beforehand. Hours.

A dynamic programme from the deadline backwards over ticks, work left, and what runs with how much of its changeover
before it. Work and changeover are counted in equal parts of a tick; where they do not fit, they are rounded down, so
that the result stays a bound. Nothing is ever lost and saves cost nothing. Several pools count as one at the lowest
price.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from unbroken.policy.decision import Terms
from unbroken.simulate.replay import World

_MOST_PARTS = 16
_BATCH = 16


def omniscient_costs(world: World, starts: Any, terms: Terms) -> Any:
    """float64, shape (starts,): the cost of the cheapest way to finish in time; infinite where there is none."""
    at = np.asarray(starts, dtype=np.int64)
    up = world.up.any(axis=0)
    price = np.where(world.up, world.prices, np.inf).min(axis=0)
    parts = [_Bound(world, terms, up, price, at[i : i + _BATCH]).cost() for i in range(0, len(at), _BATCH)]
    return np.concatenate(parts) if parts else np.zeros(0)


def parts_of_a_tick(gap: float, changeover: float) -> int:
    """As few as make the changeover whole within 1 %, or else those that come nearest."""
    errors = {}
    for parts in range(1, _MOST_PARTS + 1):
        exact = changeover / gap * parts
        errors[parts] = (exact - math.floor(exact + 1e-9)) / exact if exact > 0.0 else 0.0
        if errors[parts] < 0.01:
            return parts
    return min(errors, key=lambda parts: (errors[parts], parts))


@dataclass
class _Bound:
    world: World
    terms: Terms
    up: Any
    price: Any
    starts: Any

    def __post_init__(self) -> None:
        self.parts = parts_of_a_tick(self.world.gap, self.terms.changeover)
        self.part = self.world.gap / self.parts
        self.work = math.floor(self.terms.work / self.part + 1e-9)
        self.change = math.floor(self.terms.changeover / self.part + 1e-9)
        self.ticks = math.ceil(self.terms.allowed / self.world.gap - 1e-9)
        self.left_over = [0, *range(self.change - self.parts, 0, -self.parts)]
        """Parts of a changeover that can be left at a tick's beginning."""

    def cost(self) -> Any:
        shape = (len(self.starts), self.work + 1)
        idle = np.full(shape, np.inf)
        idle[:, 0] = 0.0
        runs = [{left: idle.copy() for left in self.left_over} for _ in ("spot", "on-demand")]
        for tick in range(self.ticks - 1, -1, -1):
            self._before(tick, idle, *runs)
        return idle[:, self.work]

    def _before(self, tick: int, idle: Any, spot: dict[int, Any], paid: dict[int, Any]) -> None:
        """One tick earlier, in place, for the work that can be left then."""
        low, high = max(1, self.work - tick * self.parts), min(self.work, (self.ticks - tick) * self.parts)
        if low > high:
            return
        band = slice(low, high + 1)
        at = (self.starts + tick) % self.world.ticks
        dear = np.full((len(at), 1), self.world.on_demand_price)
        cheap = np.where(self.up[at], self.price[at], np.inf)[:, None]
        on_spot = {left: self._run(spot, cheap, left, low, high) for left in {*self.left_over, self.change}}
        on_demand = {left: self._run(paid, dear, left, low, high) for left in {*self.left_over, self.change}}
        idle[:, band] = np.minimum(np.minimum(idle[:, band], on_spot[self.change]), on_demand[self.change])
        for left in self.left_over:
            spot[left][:, band] = np.minimum(on_spot[left], idle[:, band])
            paid[left][:, band] = np.minimum(on_demand[left], idle[:, band])

    def _run(self, after: dict[int, Any], price: Any, left: int, low: int, high: int) -> Any:
        """Cost from here when this tick is run with so much of a changeover before it."""
        change = min(left, self.parts)
        progress = self.parts - change
        costs = np.full((len(price), high - low + 1), np.inf)
        first = max(low, progress + 1)
        if first <= high:
            rest = after[left - change][:, first - progress : high - progress + 1]
            costs[:, first - low :] = price * self.world.gap + rest
        if low <= progress:
            ends = np.arange(low, min(progress, high) + 1)
            costs[:, : len(ends)] = price * (change + ends) * self.part
        return costs
