"""Fake time."""

from __future__ import annotations

import threading
import time

import pytest

from unbroken.testing import FakeClock


def test_sleep_moves_both_clocks_and_does_not_sleep() -> None:
    clock = FakeClock(now=100.0)
    begun, before = clock.monotonic(), time.monotonic()
    clock.sleep(3600)
    assert clock.now() == 3700.0
    assert clock.monotonic() - begun == 3600
    assert time.monotonic() - before < 60


def test_wait_lets_all_its_time_pass_where_the_event_does_not_come() -> None:
    clock = FakeClock(now=100.0)
    assert clock.wait(threading.Event(), 5) is False
    assert clock.now() == 105.0


def test_wait_takes_no_time_where_the_event_is_there() -> None:
    clock, event = FakeClock(now=100.0), threading.Event()
    event.set()
    assert clock.wait(event, 5) is True
    assert clock.now() == 100.0


def test_time_does_not_pass_backwards() -> None:
    with pytest.raises(ValueError, match="-1"):
        FakeClock().advance(-1)


def test_setting_the_wall_clock_leaves_the_monotonic_one_alone() -> None:
    clock = FakeClock(now=100.0)
    begun = clock.monotonic()
    clock.set_now(50.0)
    assert clock.now() == 50.0
    assert clock.monotonic() == begun


class Waiter:
    """A thread that waits on a manual clock."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        self.event = threading.Event()
        self.result: list[bool] = []
        self.thread = threading.Thread(target=lambda: self.result.append(clock.wait(self.event, seconds)))
        self.thread.start()

    def finish(self) -> bool:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.result[0]


def test_a_manual_wait_ends_when_enough_time_was_advanced() -> None:
    clock = FakeClock(manual=True)
    waiter = Waiter(clock, 10)
    clock.until_waiting()
    clock.advance(9.5)
    clock.until_waiting()  # still
    clock.advance(0.5)
    assert waiter.finish() is False


def test_a_manual_wait_ends_when_its_event_comes() -> None:
    clock = FakeClock(manual=True)
    waiter = Waiter(clock, 10)
    clock.until_waiting()
    waiter.event.set()
    assert waiter.finish() is True


def test_until_waiting_counts_threads_whose_time_is_yet_to_come() -> None:
    clock = FakeClock(manual=True)
    early, late = Waiter(clock, 1), Waiter(clock, 100)
    clock.until_waiting(2)
    clock.advance(1)
    with pytest.raises(TimeoutError, match="1 of 2"):
        clock.until_waiting(2, timeout=0.05)
    assert early.finish() is False
    clock.advance(99)
    assert late.finish() is False


def test_a_manual_sleep_that_nobody_ends_fails_instead_of_hanging() -> None:
    with pytest.raises(TimeoutError, match="nobody advanced"):
        FakeClock(manual=True, patience=0.05).sleep(1)


def test_threads_that_advance_together_lose_no_second() -> None:
    clock = FakeClock(now=0.0)
    threads = [threading.Thread(target=lambda: [clock.sleep(1) for _ in range(1000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert clock.now() == 8000
