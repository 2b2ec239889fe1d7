"""What follows from a journal's entries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.journal import Entry, Event, Origin, RunState
from unbroken.journal.events import (
    Advisory,
    AttemptClaimed,
    AttemptEnded,
    CheckpointCommitted,
    CheckpointRetired,
    Decided,
    Note,
    Notice,
    RunFinished,
    Unknown,
)
from unbroken.journal.state import NO_PROGRESS

Written = tuple[int, str, Event]
"""(attempt, claim, event)"""

HOST = Origin("host", 1)
CLAIMED = AttemptClaimed()


def commit(step: int, manifest: str = "") -> CheckpointCommitted:
    return CheckpointCommitted(step, manifest or f"manifests/{step}", "sha", 100, 100)


def folded(*written: Written) -> RunState:
    """The state after these entries, numbered and timed 1, 2, ..."""
    state = RunState()
    for n, (attempt, claim, event) in enumerate(written, 1):
        state.apply(Entry(n, attempt, claim, f"nonce-{n}", float(n), HOST, event))
    return state


def test_a_new_run_has_nobody_and_nothing() -> None:
    state = RunState()
    assert (state.owner, state.tail, state.finished_step, state.checkpoints) == (None, 0, None, [])
    assert not state.fences(1, "a")
    assert state.attempts_without_progress() == 0


def test_the_newest_claim_owns_the_run() -> None:
    state = folded((1, "a", CLAIMED), (2, "b", CLAIMED))
    assert state.owner is state.attempts[2]
    assert state.fences(1, "a")
    assert state.fences(2, "other")
    assert not state.fences(2, "b")


def test_entries_of_a_fenced_attempt_count_for_nothing() -> None:
    state = folded(
        (1, "a", CLAIMED),
        (1, "a", commit(10)),
        (2, "b", CLAIMED),
        (1, "a", commit(20)),
        (1, "a", RunFinished(20)),
        (1, "a", CheckpointRetired("manifests/10", 10)),
        (1, "a", AttemptEnded("finished", 20)),
    )
    assert [record.step for record in state.checkpoints] == [10]
    assert state.finished_step is None
    assert state.attempts[1].ended is None
    assert [entry.n for entry in state.ignored] == [4, 5, 6, 7]
    assert state.tail == 7


@pytest.mark.parametrize("attempt", [1, 2, 4, 9])
def test_a_claim_that_is_not_the_next_attempt_counts_for_nothing(attempt: int) -> None:
    state = folded((1, "a", CLAIMED), (2, "b", CLAIMED), (attempt, "z", CLAIMED), (attempt, "z", commit(5)))
    assert state.owner is state.attempts[2]
    assert sorted(state.attempts) == [1, 2]
    assert state.checkpoints == []
    assert len(state.ignored) == 2


def test_an_entry_before_any_claim_counts_for_nothing() -> None:
    assert [entry.n for entry in folded((1, "a", commit(5))).ignored] == [1]


def test_a_contender_for_the_same_attempt_is_told_apart_by_its_claim() -> None:
    state = folded((1, "a", CLAIMED), (1, "b", commit(5)), (1, "a", commit(6)))
    assert [record.step for record in state.checkpoints] == [6]


def test_a_commit_made_twice_counts_once_and_stays_retired() -> None:
    state = folded(
        (1, "a", CLAIMED),
        (1, "a", commit(10)),
        (1, "a", commit(10)),
        (1, "a", CheckpointRetired("manifests/10", 10)),
        (1, "a", commit(10)),
    )
    assert [record.n for record in state.commits] == [2]
    assert state.checkpoints == []
    assert [record.n for record in state.attempts[1].committed] == [2]


def test_a_commit_that_was_fenced_may_be_made_by_the_owner() -> None:
    state = folded((1, "a", CLAIMED), (2, "b", CLAIMED), (1, "a", commit(10)), (2, "b", commit(10)))
    assert [(record.n, record.attempt) for record in state.checkpoints] == [(4, 2)]


def test_retired_checkpoints_stay_in_the_history() -> None:
    state = folded(
        (1, "a", CLAIMED), (1, "a", commit(10)), (1, "a", commit(20)), (1, "a", CheckpointRetired("manifests/10", 10))
    )
    assert [record.step for record in state.checkpoints] == [20]
    assert [record.step for record in state.commits] == [10, 20]


def test_checkpoints_are_in_the_order_of_their_commits_not_of_their_steps() -> None:
    state = folded((1, "a", CLAIMED), (1, "a", commit(20)), (2, "b", CLAIMED), (2, "b", commit(15)))
    assert [record.step for record in state.checkpoints] == [20, 15]


def test_a_finished_run_that_trains_on_is_not_finished() -> None:
    begun: list[Written] = [(1, "a", CLAIMED), (1, "a", commit(10)), (1, "a", RunFinished(10)), (2, "b", CLAIMED)]
    assert folded(*begun).finished_step == 10
    assert folded(*begun, (2, "b", commit(10, "again"))).finished_step == 10
    assert folded(*begun, (2, "b", commit(11))).finished_step is None


def test_a_finished_run_that_falls_back_to_an_earlier_step_is_not_finished() -> None:
    begun: list[Written] = [(1, "a", CLAIMED), (1, "a", commit(10)), (1, "a", RunFinished(10)), (2, "b", CLAIMED)]
    assert folded(*begun).finished_by == 1
    assert folded(*begun, (2, "b", Note("restored", "", {"step": 10}))).finished_step == 10
    back = folded(*begun, (2, "b", Note("restored", "", {"step": 9})))
    assert (back.finished_step, back.finished_by) == (None, None)
    late = folded(*begun, (1, "a", Note("restored", "", {"step": 9})))
    assert late.finished_step == 10
    again = folded(*begun, (2, "b", Note("restored", "", {"step": 9})), (2, "b", RunFinished(10)))
    assert (again.finished_step, again.finished_by) == (10, 2)


def test_what_an_attempt_tells_is_kept_with_it() -> None:
    state = folded(
        (1, "a", CLAIMED),
        (1, "a", Note("restored", "from step 5", {"step": 5})),
        (1, "a", Notice("ec2", "spot", 120.0)),
        (1, "a", Advisory("ec2", "rebalance")),
        (1, "a", AttemptEnded("interrupted", 9)),
        (1, "a", Note("restored", "a stranger's", {"step": "nine"})),
    )
    record = state.attempts[1]
    assert (record.restored_step, record.claimed_at, record.last_seen_at) == (5, 1.0, 6.0)
    assert record.notices == [Notice("ec2", "spot", 120.0)]
    assert record.ended == AttemptEnded("interrupted", 9)
    assert [entry.n for entry in state.advisories] == [4]
    assert [entry.n for entry in state.notes] == [2, 6]


def test_unknown_events_take_a_number_and_change_nothing_else() -> None:
    state = folded((1, "a", CLAIMED), (1, "a", Unknown("later", {})), (1, "a", commit(5)))
    assert state.tail == 3
    assert state.ignored == []
    assert [record.n for record in state.checkpoints] == [3]


def test_an_attempt_that_does_not_train_owns_the_run_and_counts_for_no_progress_either_way() -> None:
    tending = AttemptClaimed(purpose="prune")
    ended = AttemptEnded("maintenance")
    state = folded((1, "a", CLAIMED), (2, "b", tending), (2, "b", ended), (3, "c", CLAIMED), (4, "d", tending))
    assert state.attempts_without_progress() == 2
    assert state.owner is state.attempts[4]
    assert state.fences(3, "c")
    assert [record.attempt for record in state.trainings] == [1, 3]
    progress = folded((1, "a", CLAIMED), (1, "a", commit(5)), (2, "b", tending))
    assert progress.attempts_without_progress() == 0


def test_attempts_without_progress_are_counted_back_from_the_last() -> None:
    two_idle: list[Written] = [(1, "a", CLAIMED), (1, "a", commit(5)), (2, "b", CLAIMED), (3, "c", CLAIMED)]
    assert folded(*two_idle).attempts_without_progress() == 2
    assert folded(*two_idle, (3, "c", commit(6))).attempts_without_progress() == 0
    assert folded(*two_idle, (3, "c", AttemptEnded("finished"))).attempts_without_progress() == 0
    stopped: list[Written] = [*two_idle, (3, "c", AttemptEnded(NO_PROGRESS))]
    assert folded(*stopped).attempts_without_progress() == 0
    assert folded(*stopped, (4, "d", CLAIMED)).attempts_without_progress() == 1


def test_an_entry_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="entry 2 does not follow entry 0"):
        RunState().apply(Entry(2, 1, "a", "x", 1.0, HOST, CLAIMED))


_written = st.tuples(
    st.integers(1, 5),
    st.sampled_from("ab"),
    st.one_of(
        st.just(CLAIMED),
        st.builds(commit, st.integers(0, 9)),
        st.builds(CheckpointRetired, st.integers(0, 9).map("manifests/{}".format), st.just(0)),
        st.builds(RunFinished, st.integers(0, 9)),
        st.just(Unknown("later", {})),
    ),
)


@given(written=st.lists(_written, max_size=30))
def test_whatever_was_written_only_owners_are_believed(written: list[Written]) -> None:
    state = folded(*written)
    assert state.tail == len(written)
    assert sorted(state.attempts) == list(range(1, len(state.attempts) + 1))
    ignored = {entry.n for entry in state.ignored}
    owner = (0, "")
    for n, (attempt, claim, event) in enumerate(written, 1):
        if isinstance(event, AttemptClaimed):
            assert (n in ignored) == (attempt != owner[0] + 1)
            owner = owner if n in ignored else (attempt, claim)
        elif (attempt, claim) != owner:
            assert n in ignored
    manifests = [record.event.manifest for record in state.commits]
    assert len(set(manifests)) == len(manifests)
    assert {record.n for record in state.checkpoints} <= {record.n for record in state.commits}
    assert not ignored & {record.n for record in state.commits}


@given(written=st.lists(_written, max_size=20), cut=st.integers(0, 20))
def test_folding_in_two_goes_is_folding_in_one(written: list[Written], cut: int) -> None:
    state = folded(*written[:cut])
    for n, (attempt, claim, event) in enumerate(written[cut:], min(cut, len(written)) + 1):
        state.apply(Entry(n, attempt, claim, f"nonce-{n}", float(n), HOST, event))
    assert state == folded(*written)


def test_a_decision_counts_without_a_lease_and_changes_nothing_about_the_attempts() -> None:
    decided = Decided("spot", "greedy", "spot is up", "p4d/a/spot", {"slack": 3.0})
    state = folded((1, "", decided), (1, "a", CLAIMED), (1, "", decided), (1, "a", commit(10)))
    assert [entry.event for entry in state.decisions] == [decided, decided]
    assert (state.ignored, state.owner) == ([], state.attempts[1])
    assert [record.step for record in state.checkpoints] == [10]
    alive = folded((1, "a", CLAIMED), (1, "", decided))
    assert alive.attempts[1].last_seen_at == 1.0  # nobody saw the attempt when the decision was made
