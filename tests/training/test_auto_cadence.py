"""``every="auto"``: as often as saving costs next to nothing, and never less often than the tolerated loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.every import Auto, Every
from unbroken.policy.interval import best_interval
from unbroken.policy.observed_hazard import Hazard
from unbroken.testing import FakeClock
from unbroken.training.auto_cadence import FIRST_SECONDS, FIRST_STEPS, SHORTEST, Pace
from unbroken.training.cadence import Cadence


@dataclass
class Loop:
    """A training loop in fake time, which asks its cadence as ``Run`` does. All times in seconds."""

    every: Auto
    step_seconds: float
    hazard: Hazard | None = None
    clock: FakeClock = field(default_factory=lambda: FakeClock(manual=True))
    step: int = 0
    stalled: float = 0.0
    saves: list[tuple[int, float, float, float]] = field(default_factory=list)
    """Step, boundary, stall and moment of the commit."""
    advice: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cadence = Cadence(Every(auto=self.every), step=self.step, clock=self.clock, hazard=self.hazard)
        self.began = self.clock.monotonic()

    def train(self, seconds: float, stalls: Sequence[float], durables: Sequence[float]) -> None:
        """Train on; the saves take the given stalls and times to durable in turn."""
        end, told = self.clock.monotonic() + seconds, len(self.saves)
        while self.clock.monotonic() < end:
            self.clock.advance(self.step_seconds)
            self.step += 1
            now = self.clock.monotonic()
            if told < len(self.saves) and now >= self.saves[-1][3]:
                _, boundary, stall, durable_at = self.saves[-1]
                self.cadence.measured(stall, durable_at - boundary)
                told = len(self.saves)
            if self.cadence.advice:
                self.advice.append(self.cadence.advice)
                self.cadence.advice = ""
            busy = told < len(self.saves)
            if self.cadence.due(self.step, now) and not busy:
                n = len(self.saves)
                stall = stalls[n % len(stalls)]
                self.clock.advance(stall)
                self.stalled += stall
                self.saves.append((self.step, now, stall, now + max(stall, durables[n % len(durables)])))
                self.cadence.saved(self.step)

    @property
    def boundaries(self) -> list[float]:
        """Seconds since the start."""
        return [boundary - self.began for _, boundary, _, _ in self.saves]

    @property
    def gaps(self) -> list[float]:
        moments = self.boundaries
        return [later - earlier for earlier, later in pairwise(moments)]


def test_first_save_comes_after_a_minute_and_ten_steps() -> None:
    quick = Loop(Auto(), step_seconds=1.0)
    quick.train(100.0, [0.1], [1.0])
    assert quick.boundaries == [FIRST_SECONDS]
    slow = Loop(Auto(), step_seconds=20.0)
    slow.train(300.0, [0.1], [1.0])
    assert slow.saves[0][0] == FIRST_STEPS


def test_first_save_waits_no_longer_than_the_tolerated_loss() -> None:
    loop = Loop(Auto(loss=900.0), step_seconds=300.0)
    loop.train(900.0, [0.1], [1.0])
    assert loop.boundaries == [900.0]
    short = Loop(Auto(loss=20.0), step_seconds=1.0)
    short.train(25.0, [0.0], [0.5])
    assert short.boundaries == [20.0]


def test_a_resumed_attempt_counts_its_own_steps() -> None:
    cadence = Cadence(Every(auto=Auto()), step=5000, clock=FakeClock())
    assert not cadence.due(5000 + FIRST_STEPS - 1, 1e3 + FIRST_SECONDS)
    assert cadence.due(5000 + FIRST_STEPS, 1e3 + FIRST_SECONDS)


def test_stall_is_paid_back_before_the_next_save() -> None:
    loop = Loop(Auto(cap=0.01), step_seconds=1.0)
    loop.train(3600.0, [3.0], [10.0])
    assert all(gap == pytest.approx(300.0, abs=5.0) for gap in loop.gaps)


def test_next_save_waits_until_the_last_is_durable() -> None:
    loop = Loop(Auto(), step_seconds=1.0)
    loop.train(3600.0, [0.1], [400.0])
    assert all(gap == pytest.approx(400.0, abs=2.0) for gap in loop.gaps)
    assert len(loop.gaps) >= 8


def test_saves_that_cost_nothing_are_a_minute_apart() -> None:
    loop = Loop(Auto(), step_seconds=0.5)
    loop.train(1200.0, [0.0], [0.1])
    assert loop.gaps == [pytest.approx(SHORTEST, abs=0.5)] * len(loop.gaps)


def test_a_smaller_tolerated_loss_outranks_the_shortest_interval() -> None:
    loop = Loop(Auto(loss=10.0), step_seconds=0.5)
    loop.train(120.0, [0.0], [2.0])
    assert max(loop.gaps) <= 8.5


def test_an_outlier_lengthens_one_interval_only() -> None:
    loop = Loop(Auto(), step_seconds=1.0)
    loop.train(6000.0, [10.0, *[1.0] * 50], [20.0])
    assert loop.gaps[0] == pytest.approx(1000.0, abs=15.0)
    assert all(gap == pytest.approx(100.0, abs=3.0) for gap in loop.gaps[1:])


def test_work_is_at_risk_until_the_next_save_is_durable_and_that_counts() -> None:
    loop = Loop(Auto(loss=900.0), step_seconds=1.0)
    loop.train(7200.0, [30.0], [200.0])
    lost_at_worst = [durable_at - before[1] for before, (_, _, _, durable_at) in pairwise(loop.saves)]
    # Only the first save could not know how long one takes.
    assert max(lost_at_worst[1:]) <= 900.0 + 30.0 + 1.0
    assert min(lost_at_worst[1:]) >= 850.0


def test_where_cap_and_loss_contradict_each_other_the_loss_wins_and_it_is_said_once() -> None:
    loop = Loop(Auto(cap=0.01, loss=900.0), step_seconds=1.0)
    loop.train(14_400.0, [28.0], [60.0])
    assert max(loop.gaps) <= 900.0 + 1.0
    assert len(loop.advice) == 1
    assert loop.advice[0] == (
        "saving costs 3.3% of the training time, not 1%: 28s for each save, and one every 14m00s, to lose no more than "
        "15m00s of work; 1% would take a loss of 47m40s"
    )


def test_a_loss_that_no_save_can_keep_is_said_once() -> None:
    loop = Loop(Auto(loss=300.0), step_seconds=1.0)
    loop.train(7200.0, [0.5], [400.0])
    assert loop.gaps == [pytest.approx(400.0, abs=3.0)] * len(loop.gaps)
    assert len(loop.advice) == 1
    assert "takes 6m40s to become durable here, so that 13m20s of work" in loop.advice[0]


def test_one_slow_save_is_no_reason_for_advice() -> None:
    loop = Loop(Auto(loss=900.0), step_seconds=1.0)
    loop.train(7200.0, [60.0, *[0.5] * 500], [800.0, *[10.0] * 500])
    assert loop.advice == []


def test_where_the_hazard_is_known_saves_are_no_closer_than_is_best() -> None:
    hazard = Hazard(0.1, notice_success=0.5)
    loop = Loop(Auto(loss=7200.0), step_seconds=1.0, hazard=hazard)
    loop.train(40_000.0, [5.0], [60.0])
    best = best_interval(5.0, hazard.mean_seconds)
    assert 500.0 < best < 7000.0
    assert all(gap == pytest.approx(best + 5.0, abs=2.0) for gap in loop.gaps)
    assert loop.advice == []


def test_cap_holds_against_a_high_hazard_and_it_is_said_once() -> None:
    loop = Loop(Auto(), step_seconds=1.0, hazard=Hazard(1.0))
    loop.train(20_000.0, [5.0], [60.0])
    assert all(gap == pytest.approx(505.0, abs=2.0) for gap in loop.gaps)
    assert len(loop.advice) == 1
    assert "an interruption every 1h00m, a save every 3m06s would lose the least time; it costs 2.7%" in loop.advice[0]


def test_the_progress_page_is_told_when_to_expect_the_next_save() -> None:
    loop = Loop(Auto(), step_seconds=1.0)
    cadence, clock = loop.cadence, loop.clock
    assert cadence.next_save_at == clock.now() + FIRST_SECONDS
    assert cadence.next_save_step == -1
    clock.advance(60.0)
    cadence.saved(60)
    assert cadence.next_save_at == clock.now() + FIRST_SECONDS  # as far as is known
    clock.advance(20.0)
    cadence.measured(2.0, 20.0)
    assert cadence.next_save_at == pytest.approx(clock.now() + 180.0)
    clock.advance(180.0)
    assert cadence.due(61, clock.monotonic())
    cadence.saved(61)
    assert cadence.next_save_at == pytest.approx(clock.now() + 200.0)


def test_an_advisory_during_a_save_is_not_forgotten_when_it_is_measured() -> None:
    loop = Loop(Auto(), step_seconds=1.0)
    loop.cadence.saved(10)
    loop.cadence.advised()
    loop.cadence.measured(2.0, 20.0)
    assert loop.cadence.due(11, loop.clock.monotonic())


def test_a_failed_save_is_due_again_when_its_stall_is_paid_back() -> None:
    loop = Loop(Auto(), step_seconds=1.0)
    cadence, clock = loop.cadence, loop.clock
    for seconds, pause in ((0.1, 30.0), (0.9, 90.0)):
        for _ in range(5):
            cadence.saved(1)
            cadence.measured(seconds, 5.0)
        cadence.saved(1)
        cadence.failed()
        assert not cadence.due(2, clock.monotonic() + pause - 0.1)
        assert cadence.due(2, clock.monotonic() + pause)
        assert cadence.next_save_at == pytest.approx(clock.now() + pause)


def test_a_failed_first_save_is_due_again_soon() -> None:
    loop = Loop(Auto(), step_seconds=1.0)
    loop.cadence.saved(1)
    loop.cadence.failed()
    assert loop.cadence.due(2, loop.clock.monotonic() + 30.0)


def test_measures_change_nothing_for_a_cadence_in_steps_or_time() -> None:
    clock = FakeClock(manual=True)
    for every in (Every(steps=10), Every(seconds=60.0)):
        cadence = Cadence(every, step=0, clock=clock)
        before = vars(cadence).copy()
        cadence.measured(5.0, 1e4)
        assert vars(cadence) == before


stalls = st.lists(st.floats(0.0, 20.0), min_size=1, max_size=12)
durables = st.lists(st.floats(0.0, 300.0), min_size=1, max_size=12)
hazards = st.none() | st.builds(Hazard, st.floats(0.0, 5.0), st.floats(0.0, 1.0))


@given(stalls, durables, st.floats(0.5, 90.0), st.floats(60.0, 3600.0), st.floats(0.002, 0.2), hazards)
def test_no_save_begins_before_the_last_is_durable_nor_later_than_the_loss_and_a_step(
    stall: list[float], durable: list[float], step: float, loss: float, cap: float, hazard: Hazard | None
) -> None:
    loop = Loop(Auto(cap, loss), step, hazard)
    loop.train(10_000.0, stall, durable)
    assert loop.saves
    assert loop.boundaries[0] <= max(FIRST_SECONDS, loss) + step
    for (_, boundary, blocked, durable_at), (_, later, _, _) in pairwise(loop.saves):
        assert later >= durable_at
        # A save that takes longer than the loss is followed by the next one at once.
        assert later - boundary <= max(loss + blocked, durable_at - boundary) + 2.0 * step
    assert len(loop.advice) == len(set(loop.advice)) <= 3


@given(stalls, durables, st.floats(0.5, 5.0), st.floats(0.01, 0.2), hazards)
def test_saving_costs_no_more_than_the_cap_where_the_loss_allows(
    stall: list[float], durable: list[float], step: float, cap: float, hazard: Hazard | None
) -> None:
    loop = Loop(Auto(cap, 1e6), step, hazard)
    loop.train(10_000.0, stall, durable)
    moments = loop.boundaries
    for n in range(1, len(moments)):
        spent = sum(blocked for _, _, blocked, _ in loop.saves[:n])
        assert spent <= cap * (moments[n] - moments[0]) + 1e-6


@given(st.lists(st.tuples(st.floats(0.0, 1e4), st.floats(0.0, 1e5)), max_size=20), st.floats(1.0, 1e5), hazards)
def test_whatever_is_measured_the_interval_keeps_its_bounds(
    saves: list[tuple[float, float]], loss: float, hazard: Hazard | None
) -> None:
    pace = Pace(Auto(0.01, loss), hazard)
    for stall, durable in saves:
        assert durable <= pace.measured(stall, durable) <= max(durable, loss)
        assert 0.0 <= pace.longest <= loss
        assert 30.0 <= pace.retry(30.0) <= loss or pace.retry(30.0) == loss
        pace.advice()
