"""Which pool next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.policy.pool_choice import PoolSeen, choose_pool, expected_hazard, expected_prices

pools = st.builds(
    PoolSeen, price=st.floats(0.1, 50.0), interruptions=st.integers(0, 20).map(float), hours=st.floats(0.0, 200.0),
    refusals=st.integers(0, 5).map(float), hazard=st.floats(0.0, 5.0),
)  # fmt: skip


def test_the_cheaper_of_two_alike_is_taken_and_the_numbers_are_given() -> None:
    decision = choose_pool({"a": PoolSeen(2.0), "b": PoolSeen(1.9)}, 0.2)
    assert decision is not None
    assert decision.pool == "b"
    assert decision.numbers == pytest.approx({"a": 2.0 * 1.04, "b": 1.9 * 1.04})


def test_a_little_dearer_is_better_than_interrupted_all_the_time() -> None:
    shaky = PoolSeen(1.0, interruptions=6.0, hours=3.0)
    decision = choose_pool({"shaky": shaky, "steady": PoolSeen(1.1, hours=10.0)}, 0.5)
    assert decision is not None
    assert decision.pool == "steady"


def test_what_was_met_outweighs_what_was_known_with_time() -> None:
    assert expected_hazard(PoolSeen(1.0, hazard=2.0, weight=5.0)) == 2.0
    assert expected_hazard(PoolSeen(1.0, 10.0, 100.0, hazard=2.0, weight=5.0)) == pytest.approx(20.0 / 105.0)


def test_a_pool_that_refused_is_left_alone_for_one_as_good() -> None:
    decision = choose_pool({"full": PoolSeen(1.0, refusals=1.0), "open": PoolSeen(1.05)}, 0.2)
    assert decision is not None
    assert decision.pool == "open"


def test_only_pools_that_are_up_are_taken() -> None:
    both = {"a": PoolSeen(1.0), "b": PoolSeen(2.0)}
    decision = choose_pool(both, 0.2, up=["b"])
    assert decision is not None
    assert decision.pool == "b"
    assert choose_pool(both, 0.2, up=[]) is None


@given(pools, st.floats(0.0, 2.0))
def test_an_interruption_more_never_makes_a_pool_better(seen: PoolSeen, changeover: float) -> None:
    more = PoolSeen(seen.price, seen.interruptions + 1.0, seen.hours, seen.refusals, seen.hazard)
    assert expected_prices(more, changeover) >= expected_prices(seen, changeover) >= seen.price


@given(st.dictionaries(st.text(max_size=3), pools, min_size=1), st.floats(0.0, 2.0))
def test_none_is_expected_to_cost_less_than_the_chosen_one(seen: dict[str, PoolSeen], changeover: float) -> None:
    decision = choose_pool(seen, changeover)
    assert decision is not None
    assert decision.numbers[decision.pool] == min(decision.numbers.values())
