"""When saves are due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.testing import FakeClock
from unbroken.training.cadence import Cadence, Every, parse_every


@pytest.mark.parametrize(
    ("text", "every"),
    [(5, Every(steps=5)), ("500", Every(steps=500)), ("10min", Every(seconds=600)), ("1h 30s", Every(seconds=3630))],
)
def test_steps_and_durations_are_read(text, every):
    assert parse_every(text) == every


@pytest.mark.parametrize("wrong", [0, -3, "0", "-5", "", "often", 2.5, True, None, "10 parsecs"])
def test_what_is_no_cadence_is_refused_with_an_example(wrong):
    with pytest.raises(ConfigError, match="10min"):
        parse_every(wrong)


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
