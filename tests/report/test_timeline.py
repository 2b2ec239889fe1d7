"""Attempts in numbers: what was done, done again, and lost."""

from __future__ import annotations

from typing import Any

from unbroken.journal.events import AttemptEnded
from unbroken.report import Sighting, build_timeline, lost_seconds


def test_an_interruption_with_a_save_repeats_nothing_and_loses_only_the_restart(interrupted: Any) -> None:
    first = build_timeline(interrupted.entries, interrupted.state)[0]
    assert (first.restored_step, first.last_step, first.steps_done, first.steps_repeated) == (0, 30, 30, 0)
    assert (first.last_step_at, first.caught_up_at) == (1032.0, 1042.0)
    assert first.lost_seconds == 10.0
    assert first.cause == "interrupted"
    assert first.startup_seconds == 2.0


def test_without_a_sighting_a_killed_agent_is_known_only_by_its_last_commit(interrupted: Any) -> None:
    second = build_timeline(interrupted.entries, interrupted.state)[1]
    assert (second.last_step, second.steps_repeated, second.cause) == (50, 0, "no word")
    assert second.ended_at == 1063.0


def test_a_sighting_adds_the_steps_that_no_commit_knew_of(interrupted: Any) -> None:
    seen = Sighting(last_step=58, last_step_at=1070.0, ended_at=1070.5, cause="killed")
    second = build_timeline(interrupted.entries, interrupted.state, {2: seen})[1]
    assert (second.steps_done, second.steps_repeated) == (28, 8)
    # The third attempt made 50 steps in the 50 s from 1082 to 1132, so it was at step 58 again at 1090.
    assert second.caught_up_at == 1090.0
    assert second.lost_seconds == 20.0
    assert (second.cause, second.ended_at) == ("killed", 1070.5)


def test_the_last_attempt_has_lost_nothing_and_finished(interrupted: Any) -> None:
    last = build_timeline(interrupted.entries, interrupted.state)[2]
    assert (last.cause, last.steps_done, last.steps_repeated, last.lost_seconds) == ("finished", 50, 0, None)


def test_an_open_attempt_has_no_end(hand: Any) -> None:
    hand.claim(10.0)
    hand.restored(11.0, 0)
    line = build_timeline(hand.entries, hand.state)[0]
    assert (line.ended_at, line.cause) == (None, "")


def test_a_first_checkpoint_without_a_restore_began_at_zero(hand: Any) -> None:
    hand.claim(10.0)
    hand.commit(20.0, 5)
    assert build_timeline(hand.entries, hand.state)[0].restored_step == 0


def test_an_attempt_that_died_before_it_trained_is_skipped_when_catching_up(hand: Any) -> None:
    hand.claim(0.0)
    hand.restored(0.0, 0)
    hand.commit(10.0, 10)
    hand.claim(20.0)
    hand.end(25.0, "crashed", -1)
    hand.claim(30.0)
    hand.restored(31.0, 10)
    hand.commit(41.0, 20)
    lines = build_timeline(hand.entries, hand.state)
    assert (lines[0].lost_seconds, lines[0].steps_repeated) == (21.0, 0)
    assert (lines[1].steps_done, lines[1].last_step, lines[1].lost_seconds) == (0, -1, None)


def test_lost_time_that_overlaps_counts_once(hand: Any) -> None:
    hand.claim(0.0)
    hand.restored(0.0, 0)
    hand.commit(10.0, 10)
    hand.end(20.0, "crashed", 20)
    hand.claim(30.0)
    hand.restored(30.0, 10)
    hand.end(35.0, "crashed", 15)  # dies before it is at step 20 again
    hand.claim(40.0)
    hand.restored(40.0, 10)
    hand.commit(60.0, 30)
    lines = build_timeline(hand.entries, hand.state)
    assert [line.steps_repeated for line in lines] == [10, 5, 0]
    assert [line.lost_seconds for line in lines] == [30.0, 10.0, None]
    assert lost_seconds(lines) == 30.0


def test_what_a_fenced_attempt_wrote_changes_nothing(interrupted: Any) -> None:
    before = build_timeline(interrupted.entries, interrupted.state)
    interrupted.add(2000.0, AttemptEnded("finished", 999), attempt=1)
    assert build_timeline(interrupted.entries, interrupted.state) == before


def test_attempts_that_did_not_train_are_left_out(interrupted: Any) -> None:
    before = build_timeline(interrupted.entries, interrupted.state)
    interrupted.claim(2000.0, "prune")
    interrupted.end(2001.0, "maintenance", -1)
    assert build_timeline(interrupted.entries, interrupted.state) == before


def test_maintenance_replaces_an_attempt_that_died_without_a_word(hand: Any) -> None:
    hand.claim(1000.0)
    hand.restored(1001.0, 0)
    hand.commit(1010.0, 5)
    hand.claim(2000.0, "prune")
    (line,) = build_timeline(hand.entries, hand.state)
    assert (line.cause, line.ended_at) == ("no word", 1010.0)
