"""How a run stands."""

from __future__ import annotations

from typing import Any

from unbroken.journal.events import Note, Notice
from unbroken.report import RunSummary, summarise


def summary(journal: Any, now: float = 2000.0) -> RunSummary:
    return summarise("s3://bucket/run", "id", 999.0, journal.entries, journal.state, now)


def test_a_run_without_attempts_is_new(hand: Any) -> None:
    assert (summary(hand).state, summary(hand).durable, summary(hand).attempts) == ("new", None, [])


def test_an_attempt_that_said_nothing_leaves_the_run_open(hand: Any) -> None:
    hand.claim(1000.0)
    assert summary(hand).state == "open"


def test_an_ended_attempt_gives_the_run_its_cause(hand: Any) -> None:
    hand.claim(1000.0)
    hand.add(1001.0, Notice("ec2", "terminate", 1121.0))
    hand.end(1002.0, "interrupted", 7)
    found = summary(hand)
    assert (found.state, found.attempts_without_progress) == ("interrupted", 1)
    assert [(notice.attempt, notice.source, notice.deadline) for notice in found.notices] == [(1, "ec2", 1121.0)]


def test_the_newest_commit_is_the_durable_step(interrupted: Any) -> None:
    durable = summary(interrupted).durable
    assert durable is not None
    assert (durable.step, durable.attempt, durable.age) == (100, 3, 867.0)


def test_trouble_is_remarked_and_routine_is_not(hand: Any) -> None:
    hand.claim(1000.0)
    hand.restored(1001.0, 0)
    hand.add(1002.0, Note("save-failed", "step 20: no space is left", {"step": 20}))
    assert [(remark.topic, remark.text) for remark in summary(hand).remarks] == [
        ("save-failed", "step 20: no space is left")
    ]


def test_how_a_run_stands_is_said_by_its_newest_attempt_that_trained(hand: Any) -> None:
    hand.claim(1000.0, "prune")
    assert summary(hand).state == "new"
    hand.claim(1001.0)
    hand.end(1002.0, "interrupted", 7)
    hand.claim(1003.0, "prune")
    found = summary(hand)
    assert (found.state, found.attempts_without_progress) == ("interrupted", 1)
    assert [line.attempt for line in found.attempts] == [2]


def test_an_attempt_without_a_word_that_maintenance_replaced_does_not_go_on(hand: Any) -> None:
    hand.claim(1000.0)
    hand.claim(1003.0, "prune")
    assert summary(hand).state == "no word"
