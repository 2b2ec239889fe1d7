"""Which rounds are opened, in which order, and how each ends."""

from __future__ import annotations

from unbroken.training.agreement_messages import Ended, Opened
from unbroken.training.agreement_rounds import Rounds


def _rounds(world_size: int = 3) -> Rounds:
    return Rounds(world_size, answer_seconds=10.0)


def _answer_all(rounds: Rounds, number: int, *steps: int) -> list[Opened | Ended]:
    return [sent for rank, step in enumerate(steps) for sent in rounds.answer(number, rank, step, 1.0)]


def test_the_result_is_the_largest_begun_step() -> None:
    rounds = _rounds()
    assert rounds.propose("save", {"why": "cadence"}, 0.0) == [Opened(1, "save", {"why": "cadence"})]
    assert _answer_all(rounds, 1, 7, 9, 8) == [Ended(1, "save", 9, {"why": "cadence"})]


def test_a_stop_goes_before_saves_that_wait_and_after_it_there_is_no_round() -> None:
    rounds = _rounds()
    rounds.propose("save", {"n": 1}, 0.0)
    assert rounds.propose("save", {"n": 2}, 0.0) == []
    assert rounds.propose("stop", {"n": 3}, 0.0) == []
    assert _answer_all(rounds, 1, 5, 5, 5) == [Ended(1, "save", 5, {"n": 1}), Opened(2, "stop", {"n": 3})]
    assert _answer_all(rounds, 2, 5, 6, 6) == [Ended(2, "stop", 6, {"n": 3})]
    assert rounds.propose("stop", {}, 2.0) == rounds.propose("save", {}, 2.0) == []


def test_stops_that_meet_are_one_with_the_earliest_deadline() -> None:
    waiting = _rounds()
    waiting.propose("save", {}, 0.0)
    for until in (40.0, 20.0, 30.0, None):
        waiting.propose("stop", {"until": until}, 0.0)
    assert Opened(2, "stop", {"until": 20.0}) in _answer_all(waiting, 1, 1, 1, 1)
    running = _rounds()
    running.propose("stop", {"source": "gcp"}, 0.0)
    running.propose("stop", {"source": "ec2", "until": 20.0}, 0.0)
    assert _answer_all(running, 1, 1, 1, 1) == [Ended(1, "stop", 1, {"source": "ec2", "until": 20.0})]


def test_a_round_that_is_not_answered_ends_without_result_and_names_who_is_missing() -> None:
    rounds = _rounds()
    rounds.propose("save", {}, 5.0)
    rounds.answer(1, 1, 4, 6.0)
    assert rounds.due == 15.0
    assert rounds.pass_time(14.9) == []
    assert rounds.pass_time(15.0) == [Ended(1, "save", None, {}, (0, 2))]
    assert rounds.answer(1, 0, 4, 16.0) == []  # too late
    assert rounds.propose("save", {}, 16.0) == [Opened(2, "save", {})]


def test_who_leaves_during_a_round_counts_with_the_last_step() -> None:
    rounds = _rounds()
    rounds.propose("stop", {}, 0.0)
    rounds.answer(1, 0, 9, 0.0)
    rounds.answer(1, 1, 9, 0.0)
    assert rounds.leave(2, 10, 0.0) == [Ended(1, "stop", 10, {})]
    assert rounds.present == [0, 1]


def test_who_left_before_a_round_still_counts_as_others_must_come_to_where_it_is() -> None:
    rounds = _rounds(2)
    rounds.leave(1, 10, 0.0)
    rounds.propose("stop", {}, 0.0)
    assert rounds.answer(1, 0, 8, 0.0) == [Ended(1, "stop", 10, {})]


def test_when_all_have_left_nothing_is_opened() -> None:
    rounds = _rounds(1)
    assert rounds.leave(0, 3, 0.0) == []
    assert rounds.propose("stop", {}, 0.0) == []
