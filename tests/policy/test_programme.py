"""The dynamic programme: what its costs must obey, and that it plans better than what does not plan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.policy.deadline import SafetyNet
from unbroken.policy.decision import Situation, Terms, Tier, decide
from unbroken.policy.programme import Programme
from unbroken.policy.stays import StayRates

TERMS = Terms(24.0, 32.0, 0.2, 3.0, 1.0)
RATES = StayRates((1.2, 0.4, 0.1), (0.8, 0.4, 0.2), edges=(0.5, 3.0))
PROGRAMME = Programme(TERMS, RATES, steps=160)


def cost(situation: Situation, way: str) -> float:
    return float(PROGRAMME.numbers(TERMS, situation)[way])


@given(st.floats(1.0, 23.0), st.floats(1.0, 6.0), st.booleans(), st.floats(0.0, 5.0))
def test_more_time_never_makes_the_rest_dearer(left: float, spare: float, up: bool, age: float) -> None:
    done = TERMS.work - left
    less, more = (Situation(TERMS.allowed - left - slack, done, Tier.IDLE, up, age) for slack in (spare, spare + 1.0))
    best = [min(cost(now, way) for way in PROGRAMME.numbers(TERMS, now)) for now in (less, more)]
    assert best[1] <= best[0] * 1.005 + 0.02


@given(st.floats(1.0, 23.0), st.floats(0.5, 7.0), st.booleans())
def test_on_demand_costs_no_more_than_on_demand_to_the_end(left: float, spare: float, up: bool) -> None:
    now = Situation(TERMS.allowed - left - spare, TERMS.work - left, Tier.IDLE, up)
    assert cost(now, "cost_on_demand") <= 3.0 * (left + 0.2 + 2.0 * PROGRAMME._grid.step) + 1e-6


@given(st.floats(3.0, 23.0), st.floats(1.0, 7.0))
def test_an_old_stay_is_worth_more_than_a_young_one(left: float, spare: float) -> None:
    young, old = (
        Situation(TERMS.allowed - left - spare, TERMS.work - left, Tier.IDLE, True, age) for age in (0.0, 10.0)
    )
    assert cost(old, "cost_spot") <= cost(young, "cost_spot") + 1e-3


def test_it_waits_where_spot_returns_soon_and_buys_where_it_never_does() -> None:
    soon = SafetyNet(Programme(TERMS, StayRates((0.01,) * 5, (10.0,) * 5)))
    never = SafetyNet(Programme(TERMS, StayRates((0.01,) * 5, (0.0,) * 5)))
    now = Situation(0.0, 0.0, Tier.IDLE, False)
    assert decide(soon, TERMS, now).action == Tier.IDLE
    assert decide(never, TERMS, now).numbers["cost_wait"] == pytest.approx(3.0 * 24.2, rel=0.02)


@pytest.mark.parametrize("changeover", [0.0, 0.05, 0.2, 1.7])
def test_a_changeover_longer_or_shorter_than_a_step_costs_what_it_lasts(changeover: float) -> None:
    terms = Terms(24.0, 40.0, changeover, 3.0, 1.0)
    sure = Programme(terms, StayRates((0.0,) * 5, (0.0,) * 5), steps=100)
    numbers = sure.numbers(terms, Situation(0.0, 0.0, Tier.IDLE, True))
    assert float(numbers["cost_spot"]) == pytest.approx(24.0 + changeover, abs=2.5 * sure._grid.step)
    down = sure.numbers(terms, Situation(0.0, 0.0, Tier.IDLE, False))
    assert float(down["cost_on_demand"]) == pytest.approx(3.0 * (24.0 + changeover), abs=7.5 * sure._grid.step)


def test_arrays_of_any_length_are_looked_up() -> None:
    now = Situation(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int8), np.zeros(0, dtype=bool), np.zeros(0))
    assert [len(np.atleast_1d(rule.when)) for rule in PROGRAMME.rules(TERMS, now)][:3] == [0, 0, 0]
