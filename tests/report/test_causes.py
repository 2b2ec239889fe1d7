"""Where the time and the money went."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unbroken.journal.events import AttemptClaimed, AttemptEnded, CheckpointCommitted, Note, Origin
from unbroken.report.achieved import OnDemand, achieved_by
from unbroken.report.causes import Cause, Span, amounts_of, by_cause, spans_of


def seconds(journal: Any) -> dict[str, float]:
    lines = by_cause(spans_of(journal.entries, journal.state))
    return {str(line.cause): line.micros / 1e6 for line in lines if line.micros}


def test_every_second_of_three_attempts_has_its_cause(interrupted: Any) -> None:
    # Attempt 1: restore 2, steps to 1032, upload 1, leaving 1. Attempt 2: restore 2, steps to 1062, then trained on
    # while it uploaded; no word from 1063 to 1080. Attempt 3: restore 2, steps to 1132, upload 1, leaving 1.
    assert seconds(interrupted) == {
        "useful": 30.0 + 20.0 + 50.0,
        "stalls": 2.0,
        "repeated": 1.0,
        "restart": 2.0 + 1.0 + 2.0 + 2.0 + 1.0,
        "waiting": 6.0,
        "silent": 17.0,
    }


def test_stalls_are_cut_out_of_the_training_that_follows_them(hand: Any) -> None:
    hand.claim(0.0)
    hand.restored(10.0, 0)
    hand.add(32.0, CheckpointCommitted(10, "a", "", 1, 1, stall=1.5, seconds=2.0))
    hand.add(62.0, CheckpointCommitted(20, "b", "", 1, 1, parent="a", stall=1.5, seconds=2.0))
    hand.end(63.0, "finished", 20)
    assert seconds(hand) == {"useful": 20.0 + 28.5, "stalls": 1.5 + 2.0, "restart": 10.0 + 1.0}


def test_committed_steps_behind_which_a_later_attempt_began_do_not_count(hand: Any) -> None:
    hand.claim(0.0)
    hand.restored(0.0, 0)
    hand.commit(40.0, 40)
    hand.end(40.0, "interrupted", 40)
    hand.claim(50.0)
    hand.restored(50.0, 30)  # the checkpoint of step 40 was damaged
    hand.commit(60.0, 40)
    hand.end(60.0, "finished", 40)
    assert seconds(hand) == {"useful": 30.0 + 10.0, "repeated": 10.0, "waiting": 10.0}


def test_training_after_the_last_commit_of_the_newest_attempt_is_not_known_to_be_durable(hand: Any) -> None:
    hand.claim(0.0)
    hand.restored(5.0, 0)
    hand.commit(25.0, 20)
    hand.add(30.0, Note("save-failed", "no space"))
    assert seconds(hand) == {"restart": 5.0, "useful": 20.0, "undurable": 5.0}


def test_an_attempt_that_never_trained_was_all_restart(hand: Any) -> None:
    hand.claim(0.0)
    hand.end(7.0, "crashed", -1)
    assert seconds(hand) == {"restart": 7.0}


@pytest.mark.parametrize(("cause", "paid"), [("crashed", 30.0), ("interrupted", 20.0)])
def test_the_machine_is_paid_between_attempts_only_where_its_agent_kept_it(hand: Any, cause: str, paid: float) -> None:
    hand.claim(0.0)
    hand.end(10.0, cause, -1)
    hand.claim(20.0)
    hand.end(30.0, "crashed", -1)
    achieved = achieved_by(spans_of(hand.entries, hand.state), None)
    assert achieved.paid_seconds == paid


def test_attempts_that_only_tend_the_run_take_no_time(hand: Any) -> None:
    hand.claim(0.0, purpose="prune")
    hand.end(50.0, "maintenance", -1)
    assert spans_of(hand.entries, hand.state) == []


def test_goodput_and_savings_follow_from_the_causes(interrupted: Any) -> None:
    achieved = achieved_by(spans_of(interrupted.entries, interrupted.state), OnDemand(18.0))
    assert achieved.paid_seconds == 34.0 + 23.0 + 54.0
    assert achieved.goodput == 100.0 / 111.0
    assert achieved.on_demand_seconds == 102.0  # and the first start
    assert (achieved.on_demand_amount, achieved.currency) == (102.0 / 200, "USD")
    assert achieved.saved == pytest.approx(102.0 / 200 - 111.0 / 600)
    assert achieved.saved_share == pytest.approx(1 - (111.0 / 600) / (102.0 / 200))
    assert achieved.unknown == []


def test_savings_may_be_negative(interrupted: Any) -> None:
    achieved = achieved_by(spans_of(interrupted.entries, interrupted.state), OnDemand(6.0))
    assert achieved.saved is not None
    assert achieved.saved < 0


@pytest.mark.parametrize(
    ("on_demand", "word"),
    [(None, "--on-demand-price"), (OnDemand(18.0, "EUR"), "EUR")],
)
def test_savings_are_unknown_without_a_comparable_price(interrupted: Any, on_demand: Any, word: str) -> None:
    achieved = achieved_by(spans_of(interrupted.entries, interrupted.state), on_demand)
    assert (achieved.saved, achieved.saved_share) == (None, None)
    assert any(word in why for why in achieved.unknown)


def test_savings_are_unknown_where_an_attempt_has_no_price(hand: Any) -> None:
    unpriced = type(hand)()
    unpriced.claim(0.0)
    unpriced.restored(1.0, 0)
    unpriced.commit(11.0, 10)
    achieved = achieved_by(spans_of(unpriced.entries, unpriced.state), OnDemand(18.0))
    assert achieved.saved is None
    assert achieved.unpriced_seconds == 11.0
    assert amounts_of(spans_of(unpriced.entries, unpriced.state)) == {}


MOMENT = st.floats(-5.0, 50.0, allow_nan=False).map(lambda passed: round(passed, 3))
EVENT = st.one_of(
    st.just("claim"),
    st.integers(0, 40).map(lambda step: Note("restored", "", {"step": step})),
    st.builds(AttemptEnded, st.sampled_from(["crashed", "interrupted"]), st.integers(-1, 40)),
    st.builds(
        CheckpointCommitted,
        st.integers(0, 40), st.just(""), st.just(""), st.just(1), st.just(1),
        stall=st.floats(0, 30), seconds=st.floats(0, 30),
    ),
)  # fmt: skip
HISTORY = st.lists(st.tuples(MOMENT, EVENT, st.sampled_from([None, 0.37, 8.33])), max_size=25)


def build(journal: Any, history: list[Any]) -> None:
    """Entries whose clocks now and then go back, of machines with and without a price."""
    at = 1_800_000_000.0
    journal.claim(at)
    for i, (passed, event, price) in enumerate(history):
        at += passed
        if event == "claim":
            journal._origin = Origin("host", 1, price=price, currency="USD" if price else "")
            journal.attempt += 1
            journal.add(at, AttemptClaimed())
        elif isinstance(event, CheckpointCommitted):
            journal.add(
                at, CheckpointCommitted(event.step, f"m{i}", "", 1, 1, stall=event.stall, seconds=event.seconds)
            )
        else:
            journal.add(at, event)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORY)
def test_causes_add_up_to_the_whole_exactly_and_nothing_is_negative(hand: Any, history: list[Any]) -> None:
    journal = type(hand)()
    build(journal, history)
    spans: list[Span] = spans_of(journal.entries, journal.state)
    moments = [round(at * 1e6) for record in journal.state.trainings for at in (record.claimed_at, record.last_seen_at)]
    lines = by_cause(spans)
    assert all(span.micros > 0 and span.amount >= 0 for span in spans)
    assert all(before.end == after.begin for before, after in pairwise(spans))
    assert sum(line.micros for line in lines) == max(moments) - moments[0]
    money = sum((span.amount for span in spans), Fraction(0))
    assert sum((sum(line.amounts.values()) for line in lines), Fraction(0)) == money
    hourly: dict[float, int] = {}
    for span in spans:
        if span.paid and span.price is not None:
            hourly[span.price] = hourly.get(span.price, 0) + span.micros
    assert money == sum((Fraction(price) * paid / 3_600_000_000 for price, paid in hourly.items()), Fraction(0))
    assert [line.cause for line in lines] == list(Cause)
    achieved = achieved_by(spans, OnDemand(10.0))
    assert achieved.goodput is None or 0 <= achieved.goodput <= 1
