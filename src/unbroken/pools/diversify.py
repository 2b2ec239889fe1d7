"""A set of pools to run in together: cheap, and not all gone at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unbroken.pools.ranking import Ranked

DOWN = 0.38
"""Share of the time in which one pool has no machine."""
SAME_TYPE, SAME_REGION, ELSEWHERE = 0.4, 0.2, 0.05
"""Correlation of two pools' shortages: of one type in two zones of a region, of two types there, of two regions. In
recorded pools of one region it is 0.11 in the mean of 28 pairs and 0.56 at most; these lean to the cautious side."""


@dataclass(frozen=True)
class Chosen:
    """A set of pools."""

    pools: tuple[Ranked, ...]
    """The cheapest first."""
    effective: float
    """How many independent pools it is worth."""
    all_down: float
    """Share of the time in which none has a machine."""
    cost: float
    """Of the run, expected, with on-demand while all are down."""


def correlation(one: Ranked, other: Ranked) -> float:
    """Of two pools' shortages."""
    if one.offer.region != other.offer.region:
        return ELSEWHERE
    if one.offer.zone == other.offer.zone and one.offer.instance_type == other.offer.instance_type:
        return 1.0
    return SAME_TYPE if one.offer.instance_type == other.offer.instance_type else SAME_REGION


def effective_pools(pools: Sequence[Ranked]) -> float:
    """How many independent pools have the same variance: ``m^2 / sum of correlations`` (Kish's design effect)."""
    total = sum(correlation(one, other) for one in pools for other in pools)
    return len(pools) ** 2 / total if pools else 0.0


def choose(ranked: Sequence[Ranked], most: int, on_demand: float | None = None) -> Chosen | None:
    """Add the pool that lowers the expected cost most, until none does; None where nothing may be taken.

    Args:
        on_demand: cost of the run on demand; by default the dearest of what the pools' own would cost, and where no
            price is known, twice the dearest pool.
    """
    able = [each for each in ranked if each.takes_part]
    if not able or most < 1:
        return None
    behind = on_demand if on_demand is not None else _behind(able)
    chosen = _weigh([min(able, key=lambda each: each.expected.cost)], behind)
    while len(chosen.pools) < most:
        left = [each for each in able if each not in chosen.pools]
        wider = [_weigh([*chosen.pools, each], behind) for each in left]
        best = min(wider, key=lambda each: each.cost, default=None)
        if best is None or best.cost >= chosen.cost:
            break
        chosen = best
    return chosen


def _behind(able: Sequence[Ranked]) -> float:
    known = [each.on_demand.cost for each in able if each.on_demand is not None]
    return max(known) if known else 2.0 * max(each.expected.cost for each in able)


def _weigh(pools: Sequence[Ranked], on_demand: float) -> Chosen:
    """The cheapest pool that is up is used; each is up on its own with the share that the set as a whole implies."""
    ordered = tuple(sorted(pools, key=lambda each: (each.expected.cost, each.offer.name)))
    effective = effective_pools(ordered)
    all_down = DOWN**effective
    each_down = all_down ** (1.0 / len(ordered))
    cost = sum(each.expected.cost * (1.0 - each_down) * each_down**rank for rank, each in enumerate(ordered))
    return Chosen(ordered, effective, all_down, cost + all_down * on_demand)
