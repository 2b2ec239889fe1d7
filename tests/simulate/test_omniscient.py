"""The omniscient bound against every possible sequence of actions."""

from __future__ import annotations

import numpy as np
import pytest

from unbroken.policy.deadline import Greedy, OnDemandOnly, UniformProgress
from unbroken.policy.decision import Terms
from unbroken.simulate.omniscient import omniscient_costs, parts_of_a_tick
from unbroken.simulate.replay import World, replay
from unbroken.simulate.trace import Trace


def cheapest_of_all(up: list[int], prices: list[float], paid: float, gap: float, terms: Terms) -> float:
    """Tries idle, spot and on-demand in each tick; hours and prices as a replay counts them."""

    def go(tick: int, tier: str, change: float, left: float) -> float:
        if tick == len(up):
            return float("inf")
        best = go(tick + 1, "idle", 0.0, left)
        for action, price in (("spot", prices[tick]), ("paid", paid)):
            if action == "spot" and not up[tick]:
                continue
            begin = change if action == tier else terms.changeover
            lost = min(begin, gap)
            if left <= gap - lost + 1e-9:
                best = min(best, price * (lost + left))
            else:
                best = min(best, price * gap + go(tick + 1, action, begin - lost, left - (gap - lost)))
        return best

    return go(0, "idle", 0.0, terms.work)


def test_the_bound_is_the_cheapest_of_all_sequences_in_300_cases() -> None:
    random = np.random.default_rng(7)
    met = 0
    for _ in range(300):
        ticks, gap = int(random.integers(2, 8)), float(random.choice([0.5, 1.0]))
        up = random.integers(0, 2, ticks)
        prices = random.choice([0.5, 1.0, 2.0], ticks)
        changeover = gap * float(random.choice([0.0, 0.2, 0.5, 1.0, 1.5, 2.2]))
        work = gap * 0.1 * float(random.integers(1, 10 * ticks))
        terms = Terms(work, gap * ticks, changeover, 3.0, 1.0)
        world = World.of([Trace("small", gap, up, prices)], 3.0, 1.0)
        # Work in tenths of a tick is whole in parts of a tick only if the changeover asks for as many.
        expected = cheapest_of_all(up.tolist(), prices.tolist(), 3.0, gap, terms)
        parts = parts_of_a_tick(gap, changeover)
        if abs(work / gap * parts - round(work / gap * parts)) > 1e-6:
            terms = Terms(np.ceil(work / gap) * gap, gap * ticks, changeover, 3.0, 1.0)
            expected = cheapest_of_all(up.tolist(), prices.tolist(), 3.0, gap, terms)
        found = omniscient_costs(world, [0], terms)[0]
        assert found == pytest.approx(expected)
        met += bool(np.isfinite(expected))
    assert met > 100


def test_no_policy_is_cheaper_than_the_bound() -> None:
    random = np.random.default_rng(3)
    for chance in (0.2, 0.5, 0.8):
        world = World.of([Trace("pool", 0.5, (random.random(200) < chance).astype(np.int64))], 3.0, 1.0)
        terms = Terms(20.0, 26.0, 0.37, 3.0, 1.0)
        bound = omniscient_costs(world, np.arange(0, 100, 5), terms)
        for policy in (OnDemandOnly(), Greedy(), UniformProgress()):
            out = replay(world, np.arange(0, 100, 5), terms, policy)
            assert (out.cost >= bound - 1e-6).all()


def test_the_parts_make_the_changeover_whole() -> None:
    assert parts_of_a_tick(600 / 3600, 0.2) == 5
    assert parts_of_a_tick(300 / 3600, 0.2) == 5
    assert parts_of_a_tick(0.5, 0.0) == 1
    assert parts_of_a_tick(195 / 3600, 0.2) == 3
