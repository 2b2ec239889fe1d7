"""Replaying runs over recorded availability."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.policy.deadline import Greedy, OnDemandOnly, SafetyNet, SpotOnly, UniformProgress
from unbroken.policy.decision import Policy, Terms
from unbroken.policy.programme import Programme
from unbroken.policy.stays import Seen, StayRates, stays_of
from unbroken.simulate.replay import Chances, World, replay
from unbroken.simulate.saving import Saving
from unbroken.simulate.trace import Trace

WITH_A_NET: list[Policy] = [OnDemandOnly(), Greedy(), UniformProgress(), UniformProgress(hysteresis=False)]


def world_of(*ups: list[int], gap: float = 0.5, on_demand: float = 3.0, spot: float = 1.0) -> World:
    return World.of([Trace(f"pool{i}", gap, np.array(up)) for i, up in enumerate(ups)], on_demand, spot)


@given(
    work=st.floats(0.1, 50.0), changeover=st.floats(0.0, 3.0), spot=st.floats(0.01, 2.9), gap=st.floats(0.05, 2.0),
    start=st.integers(0, 9),
)  # fmt: skip
def test_perfect_spot_costs_its_hours(work: float, changeover: float, spot: float, gap: float, start: int) -> None:
    terms = Terms(work, 2.0 * work + 10.0 * changeover + 10.0 * gap, changeover, 3.0, spot, period=gap)
    policies: list[Policy] = [SpotOnly(), *WITH_A_NET[1:]]
    for policy in policies:
        out = replay(world_of([1] * 10, gap=gap, spot=spot), [start], terms, policy)
        assert out.cost[0] == pytest.approx(spot * (work + changeover))
        assert out.finish[0] == pytest.approx(work + changeover)
        assert out.changeovers[0] == 1


def test_the_programme_stays_on_perfect_spot() -> None:
    terms = Terms(48.0, 60.0, 0.2, 3.0, 1.0)
    policy = SafetyNet(Programme(terms, StayRates((0.0,) * 5, (1.0,) * 5)))
    assert replay(world_of([1] * 10), [0], terms, policy).cost[0] == pytest.approx(48.2)


def test_without_spot_on_demand_alone_is_paid() -> None:
    terms = Terms(10.0, 15.0, 0.2, 3.0, 1.0)
    for policy in WITH_A_NET:
        out = replay(world_of([0] * 100), [0, 7], terms, policy)
        assert out.cost == pytest.approx([30.6, 30.6])
        assert not out.missed(terms.allowed).any()
    waited = replay(world_of([0] * 100), [0], terms, SpotOnly())
    assert waited.cost[0] == 0.0
    assert waited.missed(terms.allowed).all()


ups = st.lists(st.integers(0, 1), min_size=4, max_size=60)


@given(
    up=ups, start=st.integers(0, 59), work=st.floats(1.0, 20.0), spare=st.floats(0.0, 10.0), gap=st.floats(0.05, 1.0),
    least=st.floats(0.0, 1.0), range_=st.floats(0.0, 1.0), seed=st.integers(0, 99), price=st.floats(0.1, 1.0),
)  # fmt: skip
def test_no_deadline_is_missed_with_the_net(
    up: list[int],
    start: int,
    work: float,
    spare: float,
    gap: float,
    least: float,
    range_: float,
    seed: int,
    price: float,
) -> None:
    """With any changeover up to the longest, any trace, and rates that are quite wrong."""
    most = least + range_
    terms = Terms(work, work + most + spare, least, 3.0, 3.0 * price, longest_changeover=most, period=gap)
    wrong = Seen().add(stays_of([True] * 50 + [False], 1.0)).rates()
    world = world_of(up, gap=gap, spot=3.0 * price)
    for policy in [*WITH_A_NET, SafetyNet(Programme(terms, wrong, steps=30))]:
        out = replay(world, np.full(4, start), terms, policy, chances=Chances((least, most), seed))
        assert not out.missed(terms.allowed).any(), policy.name
        # What is paid beyond the work is the slack at most, and the work is paid at the dearer price at most.
        assert (out.cost <= 3.0 * terms.allowed + 1e-6).all()


@given(
    up=ups, work=st.floats(1.0, 20.0), spare=st.floats(0.0, 20.0), every=st.floats(0.1, 3.0),
    upload=st.floats(0.0, 0.5), success=st.floats(0.0, 1.0), seed=st.integers(0, 99),
)  # fmt: skip
def test_no_deadline_is_missed_when_work_is_lost(
    up: list[int], work: float, spare: float, every: float, upload: float, success: float, seed: int
) -> None:
    saving = Saving(every, 0.01, upload, success)
    bare = Terms(work, 1.0, 0.1, 3.0, 1.0, period=0.5)
    full = saving.terms(bare)
    terms = Terms(work, full.work + full.longest_changeover + spare, 0.1, 3.0, 1.0, period=0.5)
    for policy in WITH_A_NET:
        out = replay(world_of(up), np.arange(6), terms, policy, saving, Chances((0.1, 0.1), seed))
        assert not out.missed(terms.allowed).any(), policy.name


def test_no_policy_costs_more_than_on_demand_by_more_than_the_starts_that_failed() -> None:
    """Each start on spot that is interrupted costs a changeover at the spot price, and one more at the end on demand."""  # noqa: E501
    random = np.random.default_rng(5)
    for up in (random.random((20, 200)) < random.random((20, 1))).astype(int).tolist():
        terms = Terms(20.0, 26.0, 0.7, 3.0, 1.0)
        for policy in WITH_A_NET:
            out = replay(world_of(up), np.arange(0, 200, 10), terms, policy)
            price = 1.0 * 0.7 * out.interruptions + 3.0 * 0.7 * np.maximum(0.0, out.changeovers - out.interruptions)
            assert (out.cost <= 3.0 * 20.0 + price + 1e-6).all()


@given(up=ups, gap=st.floats(0.05, 1.0), work=st.floats(1.0, 9.0), changeover=st.floats(0.0, 1.0))
def test_hours_and_money_add_up(up: list[int], gap: float, work: float, changeover: float) -> None:
    terms = Terms(work, 2.0 * work + 4.0, changeover, 3.0, 1.0, period=gap)
    for policy in WITH_A_NET:
        out = replay(world_of(up, gap=gap), np.arange(5), terms, policy)
        assert out.cost == pytest.approx(out.spot * 1.0 + out.on_demand * 3.0)
        assert (out.finish >= out.spot + out.on_demand - 1e-9).all()
        assert (out.spot + out.on_demand >= work - 1e-9).all()
        # What was paid for is work, or a changeover, of which the interrupted ones may have been short.
        assert (out.spot + out.on_demand <= work + out.changeovers * changeover + 1e-9).all()
        assert (out.changeovers >= out.interruptions).all()


def test_an_interruption_loses_what_was_not_durable() -> None:
    """Up for 4 h, gone for 1 h: of 3.9 h of progress saved each hour, uploaded in 0.2 h, 1.1 h are lost."""
    up = [1] * 8 + [0] * 2 + [1] * 30
    terms = Terms(6.0, 50.0, 0.1, 3.0, 1.0)
    out = replay(world_of(up), [0], terms, SpotOnly(), Saving(1.0, 0.0, 0.2, 0.0))
    assert out.lost[0] == pytest.approx(1.1)
    assert out.interruptions[0] == 1
    assert out.cost[0] == pytest.approx(6.0 + 1.1 + 2 * 0.1)
    saved = replay(world_of(up), [0], terms, SpotOnly(), Saving(1.0, 0.0, 0.2, 1.0))
    assert saved.lost[0] == 0.0


def test_stalls_are_paid_for() -> None:
    out = replay(world_of([1] * 10), [0], Terms(10.0, 50.0, 0.0, 3.0, 1.0), SpotOnly(), Saving(1.0, 0.02, 0.0, 1.0))
    assert out.cost[0] == pytest.approx(10.2)


def test_the_same_seed_gives_the_same_replay() -> None:
    up = np.random.default_rng(1).integers(0, 2, 200).tolist()
    terms = Terms(20.0, 40.0, 0.2, 3.0, 1.0, longest_changeover=0.4)
    saving = Saving(0.5, 0.001, 0.1, 0.5)
    one, two, other = (
        replay(world_of(up), np.arange(50), terms, UniformProgress(), saving, Chances((0.0, 0.4), seed)).cost.tolist()
        for seed in (1, 1, 2)
    )
    assert one == two
    assert one != other


def test_prices_of_the_trace_count_where_they_are_known() -> None:
    trace = Trace("priced", 1.0, np.array([2, 2, 2, 2]), np.array([0.5, np.nan, 2.0, 0.0]))
    world = World.of([trace], 3.0, 1.0, nodes=2)
    out = replay(world, [0], Terms(4.0, 50.0, 0.0, 6.0, 2.0), SpotOnly())
    assert out.cost[0] == pytest.approx(2 * (0.5 + 1.0 + 2.0 + 0.0))


def test_of_two_pools_the_cheaper_is_taken_and_the_other_when_it_goes() -> None:
    dear, cheap = (
        Trace("dear", 1.0, np.array([1] * 6), np.full(6, 2.0)),
        Trace("cheap", 1.0, np.array([1, 1, 0, 0, 1, 1])),
    )
    out = replay(World.of([dear, cheap], 9.0, 1.0), [0], Terms(6.0, 60.0, 0.0, 9.0, 1.0), SpotOnly())
    assert out.cost[0] == pytest.approx(2 * 1.0 + 4 * 2.0)
    assert out.finish[0] == 6.0


def test_a_pool_that_interrupted_often_is_left_for_a_steadier_one() -> None:
    shaky, steady = [1, 0] * 50, [1] * 100
    world = World.of([Trace("shaky", 0.5, np.array(shaky)), Trace("steady", 0.5, np.array(steady))], 9.0, 1.0)
    world.prices[1] *= 1.05
    out = replay(world, [0], Terms(30.0, 90.0, 0.4, 9.0, 1.0), SpotOnly())
    assert out.interruptions[0] <= 2


def test_pools_of_one_world_need_ticks_of_one_length() -> None:
    with pytest.raises(ConfigError, match="ticks are of 1800 s, those of a of 3600 s"):
        World.of([Trace("a", 1.0, np.array([1])), Trace("b", 0.5, np.array([1]))], 3.0, 1.0)


def test_a_run_that_never_ends_is_given_up() -> None:
    out = replay(world_of([0] * 10), [0], Terms(1.0, 2.0, 0.0, 3.0, 1.0), SpotOnly())
    assert np.isinf(out.finish[0])
