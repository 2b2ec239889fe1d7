"""Many runs at once through a recorded world, by the policies that decide in production. Hours throughout.

Tick by tick, for all starts together: spot goes, the policy decides, the tick is paid for and makes progress but for
what a changeover takes of it. A run that finishes within a tick pays for what it used of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from unbroken.policy.decision import LONG_AGO, Policy, Situation, Terms, Tier, decide_all
from unbroken.policy.pool_choice import PoolSeen, expected_prices
from unbroken.simulate.saving import NO_SAVES, Saving
from unbroken.simulate.trace import Trace, trace_error

_EPSILON = 1e-9
_GIVE_UP = 4.0
"""A run that is not done after so many times its time to the deadline is left; only policies without a net do that."""


@dataclass(frozen=True, eq=False)
class World:
    """Pools at the same time, and on-demand, which can always be had."""

    gap: float
    """Hours of a tick."""
    up: Any
    """bool, shape (pools, ticks)."""
    prices: Any
    """float64, shape (pools, ticks): of all nodes for an hour."""
    on_demand_price: float
    """Of all nodes for an hour."""

    @property
    def ticks(self) -> int:
        return int(self.up.shape[1])

    @classmethod
    def of(cls, traces: Sequence[Trace], on_demand_price: float, spot_price: float, nodes: int = 1) -> World:
        """Prices are of one node; where a trace has its own, those count.

        Raises:
            ConfigError: the traces have ticks of different lengths (kind ``trace``).
        """
        gap, ticks = traces[0].gap, min(len(trace.counts) for trace in traces)
        for trace in traces:
            if abs(trace.gap - gap) > _EPSILON:
                found = f"its ticks are of {trace.gap * 3600:g} s, those of {traces[0].name} of {gap * 3600:g} s"
                raise trace_error(trace.name, found, "Pools of one world need ticks of one length")
        up = np.stack([trace.up(nodes)[:ticks] for trace in traces])
        own = [np.full(ticks, np.nan) if trace.prices is None else trace.prices[:ticks] for trace in traces]
        prices = np.stack([np.where(np.isnan(each), spot_price, each) for each in own])
        return cls(gap, up, prices * nodes, on_demand_price * nodes)


@dataclass(eq=False)
class Outcomes:
    """What became of each start; arrays of the same length, hours and money."""

    cost: Any
    finish: Any
    """Since the start; infinite where it was given up."""
    spot: Any
    """Paid hours."""
    on_demand: Any
    lost: Any
    """Hours of training done again."""
    changeovers: Any
    """Starts of an attempt."""
    interruptions: Any

    @classmethod
    def nothing(cls, starts: int) -> Outcomes:
        return cls(*(np.zeros(starts) for _ in fields(cls)))

    @classmethod
    def joined(cls, parts: Sequence[Outcomes]) -> Outcomes:
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def missed(self, allowed: float) -> Any:
        """bool: which were late."""
        return self.finish > allowed + 1e-6


@dataclass(frozen=True)
class Chances:
    """What is drawn at random in a replay."""

    changeover: tuple[float, float]
    """Least and most that a start takes before it makes progress, evenly drawn; equal for one length."""
    seed: int = 0


def replay(
    world: World,
    starts: Any,
    terms: Terms,
    policy: Policy,
    saving: Saving = NO_SAVES,
    chances: Chances | None = None,
) -> Outcomes:
    """Run ``policy`` from each of the ticks ``starts``; the world goes on from its beginning when it ends.

    ``terms.work`` is without saves: their stalls are added here. The policy knows ``terms``, the state of spot, and how
    long it has been so, as far as that was seen since the start.
    """
    runs = _Runs(world, np.asarray(starts, dtype=np.int64), terms, saving, chances)
    for tick in range(int(np.ceil(_GIVE_UP * terms.allowed / world.gap)) + 1):
        if runs.all_done:
            break
        runs.step(tick, policy)
    return runs.outcomes()


class _Runs:
    def __init__(self, world: World, starts: Any, terms: Terms, saving: Saving, chances: Chances | None) -> None:
        count = len(starts)
        self._world, self._starts, self._saving = world, starts, saving
        self._chances = chances or Chances((terms.changeover, terms.changeover))
        self._random = np.random.default_rng(self._chances.seed)
        self.terms = saving.terms(replace(terms, period=max(terms.period, world.gap)))
        self._done, self._since_start, self._change_left = np.zeros(count), np.zeros(count), np.zeros(count)
        self._tier, self._pool = np.zeros(count, dtype=np.int8), np.zeros(count, dtype=np.int64)
        self._finished = np.zeros(count, dtype=bool)
        self._out = Outcomes.nothing(count)
        self._out.finish += np.inf
        self._changed = _last_changes(world.up)
        self._rows = np.arange(count)
        pools = world.up.shape[0]
        self._interrupted_in, self._hours_in = np.zeros((pools, count)), np.zeros((pools, count))

    @property
    def all_done(self) -> bool:
        return bool(self._finished.all())

    def outcomes(self) -> Outcomes:
        return self._out

    def step(self, tick: int, policy: Policy) -> None:
        at = (self._starts + tick) % self._world.ticks
        up, prices = self._world.up[:, at], self._world.prices[:, at]
        self._interrupt(up)
        best = self._best_pool(up, prices)
        now = Situation(
            elapsed=tick * self._world.gap,
            done=self._done,
            tier=self._tier,
            spot_up=up[best, self._rows],
            age=self._age(tick, at, best),
            finished=self._finished,
        )
        action = decide_all(policy, self.terms, now)
        self._begin(action, best)
        self._pay(tick, prices)

    def _interrupt(self, up: Any) -> None:
        hit = (self._tier == Tier.SPOT) & ~up[self._pool, self._rows] & ~self._finished
        if not hit.any():
            return
        lost = self._saving.lost(self._since_start[hit], self._random)
        self._done[hit] -= lost
        self._out.lost[hit] += lost
        self._out.interruptions[hit] += 1
        self._interrupted_in[self._pool[hit], self._rows[hit]] += 1
        self._tier[hit] = Tier.IDLE

    def _best_pool(self, up: Any, prices: Any) -> Any:
        """The pool that would be taken now; of those that run, their own."""
        if len(up) == 1:
            return self._pool
        seen = PoolSeen(prices, self._interrupted_in, self._hours_in)
        cost = np.where(up, expected_prices(seen, self.terms.changeover), np.inf)
        return np.where(self._tier == Tier.SPOT, self._pool, np.argmin(cost, axis=0))

    def _age(self, tick: int, at: Any, pool: Any) -> Any:
        age = self._changed[pool, at]
        return np.where(age < tick, age * self._world.gap, LONG_AGO)

    def _begin(self, action: Any, best: Any) -> None:
        begins = (action != self._tier) & (action != Tier.IDLE)
        low, high = self._chances.changeover
        drawn = low if low == high else self._random.uniform(low, high, len(action))
        self._change_left = np.where(begins, drawn, self._change_left)
        self._since_start = np.where(begins, 0.0, self._since_start)
        self._pool = np.where(begins & (action == Tier.SPOT), best, self._pool)
        self._out.changeovers += begins
        self._tier = action

    def _pay(self, tick: int, prices: Any) -> None:
        gap, runs = self._world.gap, self._tier != Tier.IDLE
        change = np.where(runs, np.minimum(self._change_left, gap), 0.0)
        left = self.terms.work - self._done
        progress = np.where(runs, gap - change, 0.0)
        ends = runs & (left <= progress + _EPSILON)
        progress = np.where(ends, left, progress)
        used = np.where(runs, change + progress, 0.0)
        on_spot = self._tier == Tier.SPOT
        price = np.where(on_spot, prices[self._pool, self._rows], self._world.on_demand_price)
        self._change_left = self._change_left - change
        self._done, self._since_start = self._done + progress, self._since_start + progress
        out = self._out
        out.cost += price * used
        out.spot += np.where(on_spot, used, 0.0)
        out.on_demand += np.where(on_spot, 0.0, used)
        if len(self._hours_in) > 1:
            self._hours_in[self._pool, self._rows] += np.where(on_spot, used, 0.0)
        out.finish = np.where(ends, tick * gap + used, out.finish)
        self._finished = self._finished | ends


def _last_changes(up: Any) -> Any:
    """int64, shape (pools, ticks): ticks since spot came or went, the record taken as a ring."""
    pools, ticks = up.shape
    ages = np.empty((pools, ticks), dtype=np.int64)
    for pool in range(pools):
        changes = np.flatnonzero(up[pool] != np.roll(up[pool], 1))
        if len(changes) == 0:
            ages[pool] = np.iinfo(np.int64).max // 2
            continue
        before = np.searchsorted(changes, np.arange(ticks), side="right") - 1
        ages[pool] = np.arange(ticks) - np.where(before >= 0, changes[before], changes[-1] - ticks)
    return ages
