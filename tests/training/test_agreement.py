"""Ranks as threads around one real store: saves and stops agreed, ranks that leave, ranks that are lost."""

from __future__ import annotations

import threading

import pytest
from tests.training.agreed_loop import PATIENCE, close, eventually, rank_of, ranks, stores

from unbroken.errors import ConfigError, StoreError
from unbroken.training.agreement import Outcome
from unbroken.training.agreement_host import beat_key
from unbroken.training.rank_store import RankStore

QUICK = {"beat_seconds": 0.05, "lost_seconds": 0.5}
PATIENT = {"beat_seconds": 0.05, "lost_seconds": 20.0}  # where nobody may be taken for lost on a busy machine


@pytest.mark.parametrize("ahead", [1, 4])
def test_ranks_skewed_across_a_boundary_stop_after_the_step_of_the_foremost(ahead: int) -> None:
    with ranks(3) as each:
        for rank in each:
            rank.start()
        for rank, step in zip(each, (2, 2 + ahead, 2), strict=True):
            rank.begin(step)
        each[2].agreement.propose("stop", {"source": "ec2", "until": 99.0})
        eventually(lambda: all(rank.agreement.flag for rank in each), "all ranks know of the stop")
        for rank in each:
            rank.run_free()
        for rank in each:
            rank.join()
        stop = Outcome("stop", 2 + ahead, {"source": "ec2", "until": 99.0})
        assert [rank.outcomes for rank in each] == [[stop]] * 3
        assert [rank.ended_at for rank in each] == [2 + ahead] * 3


def test_two_notices_at_once_on_two_ranks_are_one_stop_with_the_earlier_deadline() -> None:
    with ranks(3) as each:
        for rank in each:
            rank.start()
            rank.begin(5)
        barrier = threading.Barrier(2)

        def notice(rank: int, until: float) -> None:
            barrier.wait(PATIENCE)
            each[rank].agreement.propose("stop", {"until": until})

        notices = [threading.Thread(target=notice, args=pair) for pair in ((1, 30.0), (2, 20.0))]
        for thread in notices:
            thread.start()
        for thread in notices:
            thread.join(PATIENCE)
        eventually(lambda: all(rank.agreement.flag for rank in each), "all ranks know of the stop")
        for rank in each:
            rank.run_free()
            rank.join()
        assert all(len(rank.outcomes) == 1 for rank in each)
        assert each[0].outcomes == each[1].outcomes == each[2].outcomes
        # The later notice may have come when the round was over.
        assert each[0].outcomes[0].data["until"] in {20.0, 30.0}
        assert each[0].outcomes[0].step == 5


def test_a_save_and_a_stop_together_are_done_in_one_order_and_nothing_after_the_stop() -> None:
    with ranks(3) as each:
        for rank in each:
            rank.start()
            rank.begin(3)
        each[0].agreement.propose("save", {"why": "cadence"})
        each[1].agreement.propose("stop", {"until": 5.0})
        each[0].agreement.propose("save", {"why": "again"})
        eventually(lambda: all(rank.agreement.flag for rank in each), "all ranks know of a round")
        for rank in each:
            rank.run_free()
        for rank in each:
            rank.join()
        assert each[0].outcomes == each[1].outcomes == each[2].outcomes
        kinds = [outcome.kind for outcome in each[0].outcomes]
        assert kinds[-1] == "stop"
        assert kinds.count("stop") == 1


def test_saves_are_agreed_again_and_again_and_the_loop_runs_free_between() -> None:
    with ranks(2) as each:
        for rank in each:
            rank.start()
        for number in range(1, 6):
            for rank in each:
                rank.begin(10 * number)
            each[0].agreement.propose("save", {"n": number})
            eventually(lambda: all(rank.agreement.flag for rank in each), "both know of the save")
            for rank in each:
                rank.allow(10 * number + 5)
            eventually(lambda n=number: all(len(rank.outcomes) == n for rank in each), "both saved")  # type: ignore[misc]
            eventually(lambda: not any(rank.agreement.flag for rank in each), "both are free")
        each[1].agreement.propose("stop")
        for rank in each:
            rank.run_free()
        for rank in each:
            rank.join()
        assert each[0].outcomes == each[1].outcomes
        assert [outcome.step for outcome in each[0].outcomes[:-1]] == [10, 20, 30, 40, 50]


def test_a_rank_that_has_done_its_last_step_answers_and_completion_outranks_the_stop() -> None:
    with ranks(2) as each:
        for rank in each:
            rank.start(until=6)
        each[0].allow(6)
        each[0].join()
        each[1].begin(4)
        each[1].agreement.propose("stop")
        eventually(lambda: each[1].agreement.flag, "the rank behind knows of the stop")
        each[1].allow(6)
        each[1].join()
        assert [rank.outcomes for rank in each] == [[], []]
        assert [rank.ended_at for rank in each] == [6, 6]


def test_ranks_that_leave_at_different_moments_raise_no_alarm_and_rank_0_stays_for_the_last() -> None:
    with stores(3) as each:
        made = [rank_of(store, **PATIENT) for store in each]
        for rank in made:
            rank.start()
            rank.begin(1)
        first = threading.Thread(target=made[0].agreement.close, args=(PATIENCE,), daemon=True)
        made[2].agreement.close(PATIENCE)
        made[0].allow(0)
        first.start()
        made[1].agreement.propose("stop")  # the host still leads
        made[1].run_free()
        made[1].join()
        assert first.is_alive()
        assert [outcome.agreed for outcome in made[1].outcomes] == [True]
        made[1].agreement.close(PATIENCE)
        first.join(PATIENCE)
        assert not first.is_alive()
        assert [rank.lost for rank in made] == [[], [], []]
        for rank in (made[0], made[2]):
            rank.run_free()


def test_when_rank_0_cannot_stay_the_others_go_on_and_a_stop_is_their_own() -> None:
    with stores(2) as each:
        made = [rank_of(store, **PATIENT) for store in each]
        made[1].start()
        made[1].begin(3)
        made[0].agreement.close(0.0)
        each[0].close()
        made[1].agreement.propose("stop", {"source": "sigterm"})
        made[1].run_free()
        made[1].join()
        assert made[1].outcomes[0].data == {"source": "sigterm"}
        assert not made[1].outcomes[0].agreed
        assert made[1].lost == []
        made[1].agreement.close(PATIENCE)


def test_a_rank_that_ends_with_an_error_ends_the_others_at_once() -> None:
    with ranks(3) as each:
        each[1].start()
        each[1].begin(2)
        each[2].agreement.close(PATIENCE, reason="CUDA out of memory")
        eventually(lambda: each[0].lost and each[1].lost, "the others hear of it")
        each[1].run_free()
        each[1].join()
        assert isinstance(each[1].error, StoreError)
        assert each[1].error.kind == "ranks"
        assert "rank 2" in each[1].lost[0]
        assert "CUDA out of memory" in each[1].lost[0]
        assert each[2].lost == []


def test_a_silent_rank_is_lost_once_and_named_with_its_host() -> None:
    with stores(3) as each:
        each[0].put_many([beat_key(2)], [b"1 host-c"])
        made = [rank_of(store, **QUICK) for store in each[:2]]
        each[0].put_many([beat_key(2)], [b"1 host-c"])  # it beats once, and never again
        eventually(lambda: all(rank.lost for rank in made), "both hear of it")
        close([rank.agreement for rank in made])
        assert [len(rank.lost) for rank in made] == [1, 1]
        assert made[1].lost[0] == "rank 2 (host-c) was not heard of for 0.5 s"


def test_a_round_that_a_rank_does_not_answer_ends_without_result() -> None:
    with stores(3) as each:
        made = [rank_of(store, answer_seconds=0.2) for store in each[:2]]
        for rank in made:
            rank.start()
            rank.begin(4)
        made[0].agreement.propose("save")
        eventually(lambda: all(rank.agreement.flag for rank in made), "both know of the save")
        for rank in made:
            rank.allow(6)
        eventually(lambda: [rank.agreement.left_out for rank in made] == [1, 1], "the save is left out")
        made[1].agreement.propose("stop", {"until": 8.0})
        for rank in made:
            rank.run_free()
        for rank in made:
            rank.join()
            assert rank.outcomes == [Outcome("stop", rank.ended_at or 0, {"until": 8.0}, agreed=False, missing=(2,))]
        close([rank.agreement for rank in made], 0.0)


def test_a_store_that_breaks_is_told_to_the_owner_and_raised_to_the_loop() -> None:
    with stores(2) as each:
        made = [rank_of(store, **QUICK) for store in each]
        made[1].start()
        made[1].begin(2)
        each[1].close()
        eventually(lambda: made[1].lost, "it hears of it")
        made[1].run_free()
        made[1].join()
        assert isinstance(made[1].error, StoreError)
        assert "rank 0" in made[1].lost[0]
        close([made[1].agreement, made[0].agreement], 0.0)
        assert len(made[1].lost) == 1


def test_a_rank_that_died_while_writing_a_note_does_not_hold_up_the_others() -> None:
    with ranks(2, **PATIENT) as each:
        each[1].start()
        each[0].start()
        for rank in each:
            rank.begin(1)
        _store_of(each[1].agreement).count("notes/count", 1)  # it took a number and is gone
        each[1].agreement.propose("stop")
        eventually(lambda: all(rank.agreement.flag for rank in each), "both know of the stop")
        for rank in each:
            rank.run_free()
            rank.join()
        assert [outcome.agreed for outcome in each[0].outcomes + each[1].outcomes] == [True, True]


def _store_of(agreement: object) -> RankStore:
    store = vars(agreement)["_store"]
    assert isinstance(store, RankStore)
    return store


def test_only_rank_0_proposes_saves_and_data_must_fit_json() -> None:
    with ranks(2) as each:
        with pytest.raises(ConfigError, match="rank 1 cannot propose 'save'"):
            each[1].agreement.propose("save")
        with pytest.raises(ConfigError):
            each[0].agreement.propose("pause")
        with pytest.raises(TypeError):
            each[0].agreement.propose("stop", {"source": object()})


def test_sixty_four_ranks_agree_and_leave_no_thread_behind() -> None:
    before = set(threading.enumerate())
    with ranks(64, answer_seconds=PATIENCE) as each:
        for rank in each:
            rank.start()
            rank.begin(1 + rank.agreement.rank % 3)
        each[0].agreement.propose("save")
        eventually(lambda: all(rank.agreement.flag for rank in each), "all know of the save")
        for rank in each:
            rank.allow(3)
        eventually(lambda: all(rank.outcomes for rank in each), "all saved")
        each[63].agreement.propose("stop")
        for rank in each:
            rank.run_free()
        for rank in each:
            rank.join()
        assert {tuple((outcome.kind, outcome.agreed) for outcome in rank.outcomes) for rank in each} == {
            (("save", True), ("stop", True))
        }
        assert len({rank.ended_at for rank in each}) == 1
        assert all(rank.outcomes[0].step == 3 for rank in each)
    eventually(lambda: not set(threading.enumerate()) - before, "all threads end")
