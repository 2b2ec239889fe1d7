"""Who is taken for lost."""

from __future__ import annotations

from unbroken.training.agreement_beats import Silence


def _silence() -> Silence:
    return Silence(beat_seconds=5.0, lost_seconds=60.0)


def test_a_rank_that_beats_is_heard_and_one_that_stopped_is_lost_after_the_bound() -> None:
    silence = _silence()
    lost_at: dict[int, float] = {}
    for number in range(20):
        now = 5.0 * number
        for rank in silence.look({0: b"%d" % number or b"0", 1: b"1"}, now):
            lost_at.setdefault(rank, now)
    assert lost_at == {1: 60.0}


def test_time_in_which_nobody_looked_makes_nobody_lost() -> None:
    silence = _silence()
    silence.look({1: b"1"}, 0.0)
    assert silence.look({1: b"1"}, 3600.0) == []


def test_a_rank_that_has_not_come_yet_has_ten_times_as_long() -> None:
    silence = _silence()
    first = next(now for now in range(0, 2000, 5) if silence.look({1: b""}, float(now)))
    assert first == 600
