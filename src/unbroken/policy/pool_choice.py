"""Which pool next: the one whose hour of progress is expected to cost least, also by what happened here before.

An interruption costs a start elsewhere. A pool's hazard is what is known of it beforehand, and what the run has met
in it, the latter with the weight of the hours it was there. Numbers or arrays, as in :mod:`unbroken.policy.decision`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unbroken.policy.decision import Number

PRIOR_HAZARD = 0.2
"""Interruptions per hour of a pool of which nothing is known."""
PRIOR_HOURS = 5.0
"""Hours in the pool that weigh as much as what was known beforehand."""


@dataclass(frozen=True)
class PoolSeen:
    """One pool, as seen by one run. Hours and 1/h."""

    price: Number
    """Of an hour, now."""
    interruptions: Number = 0.0
    """That the run met in it."""
    hours: Number = 0.0
    """That the run paid for in it."""
    refusals: Number = 0.0
    """Starts in a row for which there was no machine after all."""
    hazard: Number = PRIOR_HAZARD
    """Interruptions per hour, as known beforehand."""
    weight: Number = PRIOR_HOURS
    """How many hours in the pool that knowledge is worth."""


@dataclass(frozen=True)
class PoolDecision:
    """The chosen pool, and the expected cost of an hour of progress in each."""

    pool: str
    numbers: Mapping[str, float]


def expected_hazard(seen: PoolSeen) -> Number:
    """Interruptions per hour: what was known, drawn towards what was met (a gamma prior's mean)."""
    return (seen.hazard * seen.weight + seen.interruptions) / (seen.weight + seen.hours)


def expected_prices(seen: PoolSeen, changeover: float) -> Number:
    """Cost of an hour of progress: of ``1 / hazard`` paid hours on average, a changeover makes none.

    A start that was refused costs time and is tried again less gladly: each one in a row counts as a changeover more.
    """
    lost = changeover * (1.0 + seen.refusals)
    return seen.price * (1.0 + lost * expected_hazard(seen)) * (1.0 + 0.1 * seen.refusals)


def choose_pool(
    pools: Mapping[str, PoolSeen], changeover: float, up: Sequence[str] | None = None
) -> PoolDecision | None:
    """The cheapest of the pools that are thought to be up (all, where that is not known); None where there is none."""
    prices = {name: float(expected_prices(seen, changeover)) for name, seen in pools.items()}
    open_ = [name for name in prices if up is None or name in up]
    if not open_:
        return None
    return PoolDecision(min(open_, key=lambda name: (prices[name], name)), prices)
