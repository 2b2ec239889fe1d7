"""The moments of a drill's interruptions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.drill.schedule import KINDS, Strike, draw_schedule
from unbroken.errors import ConfigError


@given(seed=st.integers(), count=st.integers(4, 12), first=st.integers(1, 100), steps=st.integers(200, 10_000))
def test_each_kind_comes_between_the_first_save_and_the_end(seed: int, count: int, first: int, steps: int) -> None:
    until = first + steps
    schedule = draw_schedule(seed=seed, count=count, first_save=first, until=until, step_seconds=0.1)
    assert len(schedule) == count
    assert {strike.kind for strike in schedule} == set(KINDS)
    assert all(first < strike.step < until for strike in schedule)
    assert all(0 <= strike.delay <= 0.1 for strike in schedule)
    at = [strike.step for strike in schedule]
    assert at == sorted(set(at))


@given(seed=st.integers(), count=st.integers(4, 11))
def test_no_kind_comes_a_second_time_more_often_than_another(seed: int, count: int) -> None:
    schedule = draw_schedule(seed=seed, count=count, first_save=10, until=1000, step_seconds=0.1)
    times = [sum(strike.kind == kind for strike in schedule) for kind in KINDS]
    assert max(times) - min(times) <= 1


@given(seed=st.integers(), count=st.integers(4, 12), nodes=st.integers(1, 6))
def test_no_node_is_struck_a_second_time_before_each_was_struck_once(seed: int, count: int, nodes: int) -> None:
    schedule = draw_schedule(seed=seed, count=count, first_save=10, until=1000, step_seconds=0.1, nodes=nodes)
    times = [sum(strike.node == node for strike in schedule) for node in range(nodes)]
    assert sum(times) == count
    assert max(times) - min(times) <= 1


def test_the_number_of_nodes_changes_nothing_else() -> None:
    def moments(nodes: int) -> object:
        drawn = draw_schedule(seed=7, count=5, first_save=20, until=300, step_seconds=0.1, nodes=nodes)
        return [(strike.kind, strike.step, strike.delay) for strike in drawn]

    assert moments(1) == moments(4)


def test_an_interruption_names_its_node_where_there_are_several() -> None:
    strike = Strike("sigterm", 20, 0.0, node=1)
    assert (strike.describe(1), strike.describe(2)) == ("SIGTERM", "SIGTERM on node 1")


def test_a_seed_repeats_its_schedule_and_another_does_not() -> None:
    def draw(seed: int) -> object:
        return draw_schedule(seed=seed, count=5, first_save=20, until=300, step_seconds=0.1)

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_the_last_seconds_before_the_end_are_left_alone() -> None:
    for seed in range(50):
        schedule = draw_schedule(seed=seed, count=4, first_save=10, until=100, step_seconds=0.05)
        assert schedule[-1].step <= 70  # 30 steps take 1.5 s


def test_a_training_too_short_for_so_many_is_refused() -> None:
    with pytest.raises(ConfigError, match="first save at step 90 and the end at step 100") as caught:
        draw_schedule(seed=1, count=5, first_save=90, until=100, step_seconds=0.1)
    assert caught.value.kind == "too-short"


def test_fewer_than_one_of_each_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of each kind"):
        draw_schedule(seed=1, count=3, first_save=10, until=1000, step_seconds=0.1)
