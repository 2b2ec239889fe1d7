"""When saves are due."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unbroken.testing import FakeClock
from unbroken.training.cadence import Cadence, Every


@given(st.integers(1, 50), st.integers(0, 500), st.integers(1, 200))
def test_saves_in_steps_fall_on_multiples_wherever_an_attempt_began(every, start, count):
    cadence = Cadence(Every(steps=every), step=start, clock=FakeClock())
    saved = []
    for step in range(start + 1, start + count + 1):
        if cadence.due(step, 0.0):
            saved.append(step)
            cadence.saved(step)
    assert saved == [step for step in range(start + 1, start + count + 1) if step % every == 0]


def test_saves_in_time_are_counted_from_the_last_one():
    clock = FakeClock(manual=True)
    cadence = Cadence(Every(seconds=60), step=0, clock=clock)
    clock.advance(59)
    assert not cadence.due(1, clock.monotonic())
    clock.advance(1)
    assert cadence.due(2, clock.monotonic())
    cadence.saved(2)
    clock.advance(59)
    assert not cadence.due(3, clock.monotonic())


def test_a_failed_save_is_due_again_before_the_regular_one():
    clock = FakeClock(manual=True)
    cadence = Cadence(Every(steps=1000), step=0, clock=clock)
    cadence.failed()
    assert not cadence.due(1, clock.monotonic())
    clock.advance(30)
    assert cadence.due(2, clock.monotonic())
    cadence.saved(2)
    clock.advance(3600)
    assert not cadence.due(3, clock.monotonic())


def test_an_advisory_makes_a_save_due_at_once():
    cadence = Cadence(Every(steps=1000), step=0, clock=FakeClock())
    cadence.advised()
    assert cadence.due(1, 0.0)
    cadence.saved(1)
    assert not cadence.due(2, 0.0)
