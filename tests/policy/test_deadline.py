"""The plain policies and the net, one decision at a time."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.policy.deadline import Greedy, OnDemandOnly, SafetyNet, SpotOnly, UniformProgress
from unbroken.policy.decision import Policy, Situation, Terms, Tier, decide, decide_all, slack
from unbroken.policy.programme import Programme
from unbroken.policy.stays import StayRates

TERMS = Terms(48.0, 60.0, 0.2, 3.0, 1.0, longest_changeover=0.3, period=0.1)
PROGRAMME = SafetyNet(Programme(TERMS, StayRates((1.2, 0.4, 0.1), (0.8, 0.4, 0.2), edges=(0.5, 3.0)), steps=60))
KEEPS_DEADLINES: list[Policy] = [
    OnDemandOnly(),
    Greedy(),
    UniformProgress(),
    UniformProgress(hysteresis=False),
    PROGRAMME,
]
ALL: list[Policy] = [SpotOnly(), *KEEPS_DEADLINES]

situations = st.builds(
    Situation,
    elapsed=st.floats(0.0, 80.0), done=st.floats(0.0, 60.0), tier=st.sampled_from(Tier), spot_up=st.booleans(),
    age=st.floats(0.0, 10.0) | st.just(1e6), finished=st.booleans(),
)  # fmt: skip


def possible(now: Situation) -> bool:
    """What runs on spot has it."""
    return now.tier != Tier.SPOT or bool(now.spot_up)


@given(situations.filter(possible))
def test_nothing_is_paid_for_after_the_end(now: Situation) -> None:
    after = Situation(now.elapsed, now.done, now.tier, now.spot_up, now.age, finished=True)
    for policy in ALL:
        assert decide(policy, TERMS, after).action == Tier.IDLE


@given(situations.filter(possible))
def test_spot_is_begun_only_where_there_is_some(now: Situation) -> None:
    for policy in ALL:
        if decide(policy, TERMS, now).action == Tier.SPOT:
            assert now.spot_up


@given(situations.filter(possible))
def test_spot_is_never_begun_past_the_point_of_no_return(now: Situation) -> None:
    for policy in KEEPS_DEADLINES:
        decision = decide(policy, TERMS, now)
        if decision.action == Tier.SPOT and now.tier != Tier.SPOT:
            assert slack(TERMS, now) >= 2.0 * TERMS.longest_changeover


@given(situations.filter(possible))
def test_waiting_leaves_time_for_a_changeover(now: Situation) -> None:
    for policy in KEEPS_DEADLINES:
        if decide(policy, TERMS, now).action == Tier.IDLE and not now.finished:
            assert slack(TERMS, now) - TERMS.period >= TERMS.longest_changeover - 1e-9


@given(situations.filter(possible))
def test_an_estimate_that_was_too_low_ends_on_demand(now: Situation) -> None:
    over = Situation(now.elapsed, TERMS.work + 0.1, Tier.IDLE, now.spot_up, now.age)
    for policy in KEEPS_DEADLINES:
        assert decide(policy, TERMS, over).action == Tier.ON_DEMAND


@given(st.lists(situations.filter(possible), min_size=1, max_size=40))
def test_a_replay_decides_as_production_does(all_: list[Situation]) -> None:
    names = ("elapsed", "done", "tier", "spot_up", "age", "finished")
    arrays = Situation(*(np.array([getattr(now, name) for now in all_]) for name in names))
    for policy in ALL:
        together = decide_all(policy, TERMS, arrays)
        assert together.tolist() == [decide(policy, TERMS, now).action for now in all_], policy.name


def test_a_decision_says_what_made_it() -> None:
    decision = decide(UniformProgress(), TERMS, Situation(10.0, 7.0, Tier.IDLE, False))
    assert (decision.action, decision.policy, decision.rule) == (Tier.ON_DEMAND, "uniform", "behind")
    assert decision.numbers["pace"] == pytest.approx(8.0)
    assert decision.numbers["slack"] == pytest.approx(9.0)
    costs = decide(PROGRAMME, TERMS, Situation(10.0, 7.0, Tier.IDLE, True)).numbers
    assert 0.0 < costs["cost_spot"] <= costs["cost_on_demand"]


def test_the_policies_are_told_apart_by_what_they_do_when_spot_is_away() -> None:
    ahead, behind = Situation(10.0, 9.0, Tier.IDLE, False), Situation(10.0, 7.0, Tier.IDLE, False)
    assert decide(Greedy(), TERMS, behind).action == Tier.IDLE
    assert decide(UniformProgress(), TERMS, behind).action == Tier.ON_DEMAND
    assert decide(UniformProgress(), TERMS, ahead).action == Tier.IDLE


def test_on_demand_is_left_late_with_hysteresis_and_never_by_greedy() -> None:
    just_ahead = Situation(10.0, 8.1, Tier.ON_DEMAND, True)
    assert decide(UniformProgress(hysteresis=False), TERMS, just_ahead).action == Tier.SPOT
    assert decide(UniformProgress(), TERMS, just_ahead).action == Tier.ON_DEMAND
    assert decide(UniformProgress(), TERMS, Situation(10.0, 8.4, Tier.ON_DEMAND, True)).action == Tier.SPOT
    assert decide(Greedy(), TERMS, Situation(10.0, 30.0, Tier.ON_DEMAND, True)).action == Tier.ON_DEMAND


def test_the_names_are_those_of_the_command() -> None:
    assert [policy.name for policy in ALL] == [
        "spot-only", "on-demand", "greedy", "uniform", "uniform-plain", "programme",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values", [(0.0, 1.0, 0.1, 3.0, 1.0), (1.0, -1.0, 0.1, 3.0, 1.0), (1.0, 1.0, float("nan"), 3.0, 1.0),
     (1.0, float("inf"), 0.1, 3.0, 1.0)]
)  # fmt: skip
def test_terms_that_cannot_be_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError):
        Terms(*values)


def test_the_longest_changeover_is_never_the_shorter_one() -> None:
    assert Terms(1.0, 2.0, 0.3, 3.0, 1.0, longest_changeover=0.1).net == pytest.approx(0.6)
    assert not Terms(1.0, 1.2, 0.3, 3.0, 1.0).feasible
    assert [tier.label for tier, _ in product(Tier, "x")] == ["idle", "spot", "on-demand"]
