"""How fast uploads have been going, in fake time."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.agent.bandwidth import BandwidthMeter
from unbroken.testing import FakeClock

MB = 1_000_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(manual=True)


@pytest.fixture
def meter(clock: FakeClock) -> BandwidthMeter:
    return BandwidthMeter(clock)


def upload(meter: BandwidthMeter, clock: FakeClock, seconds: float, rate: float, piece: float = 0.5) -> None:
    with meter.upload():
        for _ in range(round(seconds / piece)):
            clock.advance(piece)
            meter.sent(round(rate * piece))


def test_nothing_is_known_before_the_first_bytes(meter: BandwidthMeter, clock: FakeClock) -> None:
    assert meter.bandwidth is None
    with meter.upload():
        clock.advance(5.0)
        assert meter.bandwidth is None


def test_bandwidth_is_known_while_the_first_upload_runs(meter: BandwidthMeter, clock: FakeClock) -> None:
    with meter.upload():
        for _ in range(4):
            clock.advance(0.25)
            meter.sent(16 * MB)
        assert meter.bandwidth == pytest.approx(64 * MB)


def test_time_between_uploads_does_not_count(meter: BandwidthMeter, clock: FakeClock) -> None:
    for _ in range(5):
        upload(meter, clock, 2.0, 50 * MB)
        clock.advance(600.0)
    assert meter.bandwidth == pytest.approx(50 * MB)


def test_upload_that_reports_its_bytes_at_the_end_only_is_measured(meter: BandwidthMeter, clock: FakeClock) -> None:
    upload(meter, clock, 60.0, 10 * MB, piece=60.0)
    assert meter.bandwidth == pytest.approx(10 * MB)


def test_recent_seconds_outweigh_earlier_ones(meter: BandwidthMeter, clock: FakeClock) -> None:
    upload(meter, clock, 60.0, 100 * MB)
    upload(meter, clock, 5.0, 20 * MB)
    assert meter.bandwidth == pytest.approx(60 * MB)
    upload(meter, clock, 5.0, 20 * MB)
    assert meter.bandwidth == pytest.approx(20 * MB)


def test_line_that_stalls_shows_while_the_upload_waits(meter: BandwidthMeter, clock: FakeClock) -> None:
    with meter.upload():
        for _ in range(40):
            clock.advance(0.5)
            meter.sent(50 * MB)
        clock.advance(5.0)
        assert meter.bandwidth == pytest.approx(50 * MB)
        clock.advance(10.0)
        assert meter.bandwidth == 0.0


def test_tiny_uploads_are_ignored(meter: BandwidthMeter, clock: FakeClock) -> None:
    upload(meter, clock, 5.0, 80 * MB)
    for _ in range(50):
        with meter.upload():
            clock.advance(0.4)
            meter.sent(2000)
    assert meter.bandwidth == pytest.approx(80 * MB)
    upload(meter, clock, 5.0, 40 * MB)
    assert meter.bandwidth == pytest.approx(60 * MB)


def test_tiny_upload_that_takes_long_makes_nobody_forget_what_was_before(
    meter: BandwidthMeter, clock: FakeClock
) -> None:
    upload(meter, clock, 5.0, 80 * MB)
    upload(meter, clock, 60.0, 1000, piece=15.0)
    assert meter.bandwidth == pytest.approx(80 * MB)
    upload(meter, clock, 5.0, 40 * MB)
    assert meter.bandwidth == pytest.approx(60 * MB)


def test_only_tiny_uploads_tell_nothing(meter: BandwidthMeter, clock: FakeClock) -> None:
    for _ in range(5000):
        with meter.upload():
            clock.advance(0.1)
            meter.sent(2000)
    assert meter.bandwidth is None


def test_upload_that_fails_has_sent_what_it_sent(meter: BandwidthMeter, clock: FakeClock) -> None:
    with pytest.raises(OSError, match="gone"), meter.upload():
        clock.advance(2.0)
        meter.sent(100 * MB)
        raise OSError("gone")
    assert meter.bandwidth == pytest.approx(50 * MB)


def test_bytes_after_the_upload_do_not_count(meter: BandwidthMeter, clock: FakeClock) -> None:
    upload(meter, clock, 5.0, 80 * MB)
    clock.advance(1.0)
    meter.sent(1000 * MB)
    assert meter.bandwidth == pytest.approx(80 * MB)


def test_second_upload_at_the_same_time_is_refused(meter: BandwidthMeter) -> None:
    with meter.upload(), pytest.raises(RuntimeError, match="already"), meter.upload():
        pass
    with meter.upload():
        pass


def test_bytes_from_several_threads_are_all_counted(meter: BandwidthMeter, clock: FakeClock) -> None:
    with meter.upload():
        clock.advance(2.0)
        threads = [threading.Thread(target=lambda: [meter.sent(1000) for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
        assert meter.bandwidth == pytest.approx(2 * MB)


@given(st.lists(st.tuples(st.floats(0.1, 30.0), st.integers(0, 10**9), st.booleans()), min_size=1, max_size=40))
def test_bandwidth_lies_between_the_slowest_and_the_fastest_piece(pieces: list[tuple[float, int, bool]]) -> None:
    clock = FakeClock(manual=True)
    meter = BandwidthMeter(clock)
    rates = []
    position = 0
    while position < len(pieces):
        with meter.upload():
            last = False
            while not last and position < len(pieces):
                seconds, size, last = pieces[position]
                clock.advance(seconds)
                meter.sent(size)
                rates.append(size / seconds)
                position += 1
    if meter.bandwidth is not None:
        assert 0.0 <= min(rates) * (1 - 1e-6) <= meter.bandwidth <= max(rates) * (1 + 1e-6)
