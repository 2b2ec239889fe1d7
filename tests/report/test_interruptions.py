"""From a notice to training again."""

from __future__ import annotations

from typing import Any

from unbroken.journal.events import Notice
from unbroken.report.interruptions import Interruption, interruptions_of


def of(journal: Any) -> list[Interruption]:
    return interruptions_of(journal.entries, journal.state)


def noticed(hand: Any) -> Any:
    hand.claim(1000.0)
    hand.restored(1002.0, 0)
    hand.add(1030.0, Notice("ec2", "terminate", 1150.0))
    hand.commit(1036.0, 30, seconds=4.0)
    hand.end(1037.0, "interrupted", 30)
    hand.claim(1100.0)
    hand.restored(1108.0, 30)
    return hand


def test_each_part_of_an_announced_interruption_is_known(hand: Any) -> None:
    (cut,) = of(noticed(hand))
    assert (cut.attempt, cut.cause, cut.source, cut.next_attempt) == (1, "interrupted", "ec2", 2)
    assert (cut.stop_step, cut.durable_step, cut.resumed_step) == (30, 30, 30)
    assert (cut.to_stop, cut.to_durable, cut.to_node, cut.to_training) == (2.0, 4.0, 64.0, 8.0)
    assert cut.total == 78.0 == 2.0 + 4.0 + 64.0 + 8.0
    assert cut.spare == 114.0


def test_without_a_word_only_what_the_journal_holds_is_said(interrupted: Any) -> None:
    first, second = of(interrupted)
    assert (first.source, first.to_stop, first.to_durable, first.to_node) == ("", None, 1.0, 7.0)
    assert (second.cause, second.stop_step, second.stop_at, second.durable_step) == ("no word", None, None, 50)
    assert (second.to_stop, second.to_durable, second.spare) == (None, None, None)
    assert (second.to_node, second.to_training, second.total) == (17.0, 2.0, 19.0)


def test_a_checkpoint_from_before_the_stop_step_is_not_taken_for_it(hand: Any) -> None:
    hand.claim(0.0)
    hand.restored(1.0, 0)
    hand.commit(20.0, 20)
    hand.end(30.0, "crashed", 28)
    (cut,) = of(hand)
    assert (cut.stop_step, cut.durable_step, cut.stop_at, cut.to_durable) == (28, 20, None, None)
    assert (cut.next_attempt, cut.to_node, cut.total) == (None, None, None)


def test_a_notice_that_the_attempt_outlived_did_not_end_it(hand: Any) -> None:
    hand.claim(0.0)
    hand.restored(1.0, 0)
    hand.add(10.0, Notice("ec2", "called off", 130.0))
    hand.add(500.0, Notice("sigterm", "stop", 530.0))
    hand.commit(502.0, 400)
    hand.end(503.0, "interrupted", 400)
    (cut,) = of(hand)
    assert (cut.source, cut.notice_at) == ("sigterm", 500.0)


def test_clocks_that_disagree_give_no_negative_duration(hand: Any) -> None:
    noticed(hand)
    hand.end(1109.0, "interrupted", 30)
    hand.claim(1105.0)
    hand.restored(1106.0, 30)
    assert [cut.to_node for cut in of(hand)] == [64.0, 0.0]


def test_an_attempt_that_goes_on_or_finished_was_not_interrupted(hand: Any) -> None:
    hand.claim(0.0)
    assert of(hand) == []
    hand.end(5.0, "finished", 10)
    assert of(hand) == []
