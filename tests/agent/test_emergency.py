"""What to upload when the machine will be taken."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.agent.emergency import Action, InFlight, Situation, choose, should_revise

GB = 1e9
RATE = 0.5 * GB  # 0.4 GB/s are counted on

LITTLE, SOME, MUCH = 0.8 * GB, 12 * GB, 61 * GB  # 2 s, 30 s, 152.5 s


@pytest.mark.parametrize(
    ("left", "in_flight", "stop", "action"),
    [
        # Nothing in flight: the stop step, whether it fits or not.
        (0, None, LITTLE, Action.ONLY),
        (41, None, LITTLE, Action.ONLY),
        (41, None, SOME, Action.ONLY),
        (41, None, MUCH, Action.ONLY),
        # Both fit.
        (41, LITTLE, LITTLE, Action.BOTH),
        (41, LITTLE, SOME, Action.BOTH),
        (41, SOME, LITTLE, Action.BOTH),
        (70, SOME, SOME, Action.BOTH),
        (160, LITTLE, MUCH, Action.BOTH),
        # Each fits, both do not: the newer one.
        (41, SOME, SOME, Action.REPLACE),
        (160, SOME, MUCH, Action.REPLACE),
        (160, MUCH, SOME, Action.REPLACE),
        (160, MUCH, MUCH, Action.REPLACE),
        # Each fits, both nearly do, and what is in flight is nearly done: insurance.
        (31, LITTLE, SOME, Action.BOTH),
        (153, LITTLE, MUCH, Action.BOTH),
        # Only the stop step fits.
        (41, MUCH, LITTLE, Action.REPLACE),
        (41, MUCH, SOME, Action.REPLACE),
        # Only what is in flight fits.
        (41, LITTLE, MUCH, Action.FINISH),
        (41, SOME, MUCH, Action.FINISH),
        # Neither fits: what has begun.
        (41, MUCH, MUCH, Action.FINISH),
        (20, SOME, SOME, Action.FINISH),
        (20, MUCH, SOME, Action.FINISH),
        (1, LITTLE, LITTLE, Action.FINISH),
        (0, LITTLE, LITTLE, Action.FINISH),
        (-5, SOME, LITTLE, Action.FINISH),
    ],
)
def test_choice_for_each_situation(left: float, in_flight: float | None, stop: float, action: Action) -> None:
    flying = None if in_flight is None else InFlight(1100, in_flight)
    assert choose(Situation(left, 1260, stop, flying, RATE, durable_step=1000)).action is action


def test_table_has_every_combination_of_fits_and_does_not() -> None:
    """Which action, by what fits: in flight, stop step, both (which implies the two)."""
    found: dict[tuple[bool, bool, bool], set[Action]] = {}
    sizes = [0.0, 0.4 * GB, 4 * GB, 12 * GB, 16 * GB, 61 * GB]
    for left, flying, stop in product([0.0, 5.0, 40.5, 41.0, 100.0, 200.0], sizes, sizes):
        now = Situation(left, 1260, stop, InFlight(1100, flying), RATE, durable_step=1000)
        fits = (now.finish_seconds() <= left, now.stop_seconds() <= left, now.both_seconds() <= left)
        found.setdefault(fits, set()).add(choose(now).action)
    assert found == {
        (False, False, False): {Action.FINISH},
        (True, False, False): {Action.FINISH},
        (False, True, False): {Action.REPLACE},
        (True, True, False): {Action.REPLACE, Action.BOTH},
        (True, True, True): {Action.BOTH},
    }


def test_what_is_in_flight_and_is_the_stop_step_is_finished() -> None:
    for size in (LITTLE, MUCH):
        assert choose(Situation(41, 1260, SOME, InFlight(1260, size), RATE)).action is Action.FINISH


def test_stop_step_that_is_hardly_newer_is_not_worth_the_risk() -> None:
    now = Situation(41, 1260, SOME, InFlight(1259, SOME), RATE, durable_step=1000)
    assert choose(now).action is Action.FINISH
    assert choose(now).text.endswith("step 1260 is hardly newer: finishing step 1259")
    # Unless what is in flight would not make it anyway, or nothing newer than that is at stake.
    assert choose(replace(now, in_flight=InFlight(1259, MUCH))).action is Action.REPLACE
    assert choose(replace(now, durable_step=1258)).action is Action.REPLACE


def test_without_a_measure_what_is_in_flight_goes_first() -> None:
    now = Situation(41, 1260, LITTLE, InFlight(1200, MUCH))
    assert choose(now).action is Action.BOTH
    assert "no bandwidth is known yet" in choose(now).text
    assert choose(replace(now, in_flight=None)).action is Action.ONLY


def test_line_that_is_dead_is_not_an_unknown_one() -> None:
    now = Situation(41, 1260, LITTLE, InFlight(1200, LITTLE), 0.0)
    assert choose(now).action is Action.FINISH


def test_copying_the_stop_step_takes_its_time_too() -> None:
    now = Situation(41, 1260, SOME, None, RATE, stage_seconds=12.0, durable_step=1000)
    assert now.stop_seconds() == pytest.approx(42.0)
    flying = replace(now, in_flight=InFlight(1200, SOME))
    assert choose(flying).action is Action.FINISH
    assert choose(replace(flying, stage_seconds=0.0)).action is Action.REPLACE


def test_two_slots_let_the_copy_and_the_upload_overlap() -> None:
    now = Situation(41, 1260, 10 * GB, InFlight(1200, LITTLE), RATE, stage_seconds=12.0)
    assert now.both_seconds() == pytest.approx(12.0 + 25.0)
    assert replace(now, in_flight=InFlight(1200, 6 * GB)).both_seconds() == pytest.approx(15.0 + 25.0)


def test_one_slot_makes_the_copy_wait_for_the_upload() -> None:
    now = Situation(41, 1260, 12 * GB, InFlight(1200, 2.8 * GB), RATE, stage_seconds=5.0, durable_step=1000)
    assert now.both_seconds() == pytest.approx(37.0)
    assert choose(now).action is Action.BOTH
    one = replace(now, second_slot=False)
    assert one.both_seconds() == pytest.approx(42.0)
    assert choose(one).action is Action.REPLACE


FLYING = Situation(41, 1260, 61 * GB, InFlight(1200, 3.1 * GB), RATE)


@pytest.mark.parametrize(
    ("situation", "facts", "reason"),
    [
        (FLYING, "3.1 GB of step 1200 in flight take 7.8 s, 61 GB of step 1260 take 152 s", "finishing step 1200"),
        (
            Situation(41, 1260, 12 * GB, InFlight(1100, 20 * GB), RATE, durable_step=1000),
            "20 GB of step 1100 in flight take 50 s, 12 GB of step 1260 take 30 s",
            "giving up step 1100 for step 1260, which fits",
        ),
        (
            replace(FLYING, in_flight=InFlight(1260, 3.1 * GB)),
            "3.1 GB of step 1260 in flight take 7.8 s",
            "it is the stop step",
        ),
        (
            replace(FLYING, in_flight=None, durable_step=1000),
            "61 GB of step 1260 take 152 s",
            "trying step 1260 all the same; step 1000 stands",
        ),
        (
            replace(FLYING, in_flight=InFlight(1200, 30 * GB)),
            "30 GB of step 1200 in flight take 75 s, 61 GB of step 1260 take 152 s",
            "neither is sure to fit: going on with step 1200, which has begun; nothing is saved yet",
        ),
        (replace(FLYING, in_flight=None, bandwidth=None), "61 GB of step 1260", "saving step 1260"),
    ],
)
def test_reason_carries_its_numbers(situation: Situation, facts: str, reason: str) -> None:
    assert choose(situation).text == f"41 s left; {facts}: {reason}"


def test_deadline_that_has_passed_leaves_no_time() -> None:
    assert choose(replace(FLYING, left=-2.0)).text.startswith("0.0 s left; ")


def test_numbers_are_for_the_journal() -> None:
    numbers = choose(Situation(41, 1260, 61 * GB, InFlight(1200, 3.1 * GB), RATE, durable_step=1000)).numbers
    assert numbers == {
        "left": 41, "stop_step": 1260, "stop_bytes": 61e9, "stop_seconds": 152.5, "durable_step": 1000,
        "bandwidth": 5e8, "in_flight_step": 1200, "in_flight_bytes": 3.1e9, "in_flight_seconds": 7.75,
    }  # fmt: skip
    unknown = choose(Situation(41, 1260, 61 * GB, InFlight(1200, 3.1 * GB))).numbers
    assert "bandwidth" not in unknown
    assert "in_flight_seconds" not in unknown
    assert json.loads(json.dumps(unknown, allow_nan=False)) == unknown


CHOSEN = choose(Situation(60, 1260, LITTLE, InFlight(1200, SOME), RATE, durable_step=1000))


@pytest.mark.parametrize(
    ("elapsed", "left", "bandwidth", "again"),
    [
        (10, 50, RATE, False),
        (10, 49.5, RATE, False),
        (10, 48, RATE, True),  # the deadline has moved
        (0, 30, RATE, True),
        (10, 50, 0.75 * RATE, False),
        (10, 50, 0.6 * RATE, True),  # the line has become slower
        (10, 50, 0.0, True),
        (10, 50, 1.4 * RATE, False),
        (10, 50, 1.6 * RATE, True),
        (10, 70, RATE, False),  # more time than was thought: what was chosen stays right
    ],
)
def test_choice_is_made_anew_where_its_grounds_have_gone(
    elapsed: float, left: float, bandwidth: float, again: bool
) -> None:
    assert should_revise(CHOSEN, elapsed=elapsed, left=left, bandwidth=bandwidth) is again


def test_first_measure_brings_another_choice() -> None:
    blind = choose(Situation(41, 1260, LITTLE, InFlight(1200, SOME)))
    assert not should_revise(blind, elapsed=1, left=40, bandwidth=None)
    assert should_revise(blind, elapsed=1, left=40, bandwidth=RATE)


@pytest.mark.parametrize(
    "situation",
    [
        Situation(41, 1260, SOME, None, RATE),
        Situation(41, 1260, SOME, InFlight(1260, SOME), RATE),
        Situation(41, 1260, SOME, InFlight(1200, SOME), RATE, durable_step=1000),
    ],
    ids=["nothing in flight", "the stop step is in flight", "what was in flight is given up"],
)
def test_nothing_is_chosen_anew_where_there_is_one_thing_to_upload(situation: Situation) -> None:
    chosen = choose(situation)
    assert chosen.action in (Action.ONLY, Action.FINISH, Action.REPLACE)
    assert not should_revise(chosen, elapsed=20, left=1, bandwidth=0.0)


sizes = st.floats(0.0, 1e12)
situations = st.builds(
    Situation,
    left=st.floats(-10.0, 600.0),
    stop_step=st.integers(1, 1000),
    stop_bytes=sizes,
    in_flight=st.none() | st.builds(InFlight, st.integers(0, 1000), sizes),
    bandwidth=st.none() | st.just(0.0) | st.floats(1e5, 1e10),
    stage_seconds=st.just(0.0) | st.floats(0.0, 60.0),
    second_slot=st.booleans(),
    durable_step=st.integers(-1, 1000),
)


@given(situations)
def test_what_is_in_flight_is_given_up_only_for_something_newer_that_fits(situation: Situation) -> None:
    if choose(situation).action is Action.REPLACE:
        assert situation.in_flight is not None
        assert situation.in_flight.step < situation.stop_step
        assert situation.stop_seconds() <= situation.left


@given(situations)
def test_both_only_where_both_fit_or_nothing_is_known(situation: Situation) -> None:
    if choose(situation).action is Action.BOTH:
        assert situation.bandwidth is None or situation.both_seconds(careful=False) <= situation.left


@given(situations)
def test_only_means_that_nothing_is_in_flight(situation: Situation) -> None:
    assert (choose(situation).action is Action.ONLY) == (situation.in_flight is None)


@given(situations)
def test_stop_step_that_fits_beside_what_is_in_flight_is_never_left_out(situation: Situation) -> None:
    flying = situation.in_flight
    if flying is not None and flying.step < situation.stop_step and situation.both_seconds() <= situation.left:
        assert choose(situation).action is Action.BOTH


@given(situations)
def test_what_fits_is_saved(situation: Situation) -> None:
    """Where anything fits, what is chosen begins with something that fits."""
    chosen, left = choose(situation), situation.left
    flying = situation.in_flight
    if flying is None or flying.step >= situation.stop_step or situation.bandwidth is None:
        return
    if situation.finish_seconds() <= left or situation.stop_seconds() <= left:
        first = situation.stop_seconds() if chosen.action is Action.REPLACE else situation.finish_seconds()
        assert first <= left


@given(situations, st.floats(0.0, 100.0))
def test_more_time_never_costs_the_stop_step(situation: Situation, more: float) -> None:
    if situation.bandwidth is not None and choose(situation).action in (Action.BOTH, Action.REPLACE):
        later = choose(replace(situation, left=situation.left + more)).action
        assert (
            later in (Action.BOTH, Action.REPLACE)
            or "hardly newer" in choose(replace(situation, left=situation.left + more)).text
        )


@given(situations)
def test_text_and_numbers_are_whole(situation: Situation) -> None:
    chosen = choose(situation)
    assert "inf" not in chosen.text
    assert "nan" not in chosen.text
    assert "-" not in chosen.text
    assert all(math.isfinite(number) for number in chosen.numbers.values())


@given(situations)
def test_the_same_again_needs_no_other_choice(situation: Situation) -> None:
    assert not should_revise(choose(situation), elapsed=0.0, left=situation.left, bandwidth=situation.bandwidth)
