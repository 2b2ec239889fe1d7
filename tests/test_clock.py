"""Durations that people type and read, and moments."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.clock import SYSTEM_CLOCK, format_duration, format_time, parse_duration, parse_time
from unbroken.errors import ConfigError

_UNITS = {
    "ms": 0.001, "s": 1, "sec": 1, "second": 1, "seconds": 1, "m": 60, "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hr": 3600, "hour": 3600, "hours": 3600, "d": 86400, "day": 86400, "days": 86400,
}  # fmt: skip
_parts = st.lists(st.tuples(st.integers(1, 10_000), st.sampled_from(sorted(_UNITS))), min_size=1, max_size=5)


@given(_parts, st.sampled_from(["", " "]), st.sampled_from(["", " "]), st.booleans())
def test_a_duration_is_the_sum_of_its_parts(
    parts: list[tuple[int, str]], inner: str, between: str, upper: bool
) -> None:
    text = between.join(f"{number}{inner}{unit}" for number, unit in parts)
    expected = sum(number * _UNITS[unit] for number, unit in parts)
    assert parse_duration(text.upper() if upper else text) == pytest.approx(expected)


@given(st.floats(0.05, 1e9))
def test_a_formatted_duration_reads_back_to_within_its_last_digit(seconds: float) -> None:
    again = parse_duration(format_duration(seconds))
    coarse = 0.051 if seconds < 9.95 else 0.51 if seconds < 3600 else 60 if seconds < 86400 else 3600
    assert abs(again - seconds) <= coarse


@given(st.floats(0.05, 1e9), st.floats(0.05, 1e9))
def test_a_longer_duration_never_reads_shorter(one: float, other: float) -> None:
    shorter, longer = sorted((one, other))
    assert parse_duration(format_duration(shorter)) <= parse_duration(format_duration(longer))


@given(st.text(max_size=12))
def test_any_text_is_a_positive_duration_or_a_config_error_that_shows_it(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ConfigError as error:
        refusal = error
    else:
        assert seconds > 0
        return
    assert repr(text) in str(refusal)
    assert refusal.kind == "duration"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "10",
        "s",
        "-5s",
        "0s",
        "0h0min",
        "1..5s",
        "10 parsecs",
        "5s!",
        "1e3s",
        "inf s",
        "nan s",
        "10min 5",
        "1,5h",
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10min", 600), ("90s", 90), ("1h 30min", 5400), (" 1.5 H ", 5400), ("250ms", 0.25), ("1d2h3m4s", 93784)],
)
def test_durations_as_the_guides_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (59.6, "1m00s"), (192, "3m12s"), (3599.7, "1h00m"),
     (18420, "5h07m"), (86399.9, "1d00h"), (183600, "2d03h"), (-192, "-3m12s")],
)  # fmt: skip
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 4_102_444_800_000))
def test_a_moment_reads_back_to_the_millisecond(milliseconds: int) -> None:
    assert parse_time(format_time(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=0.0011)


def test_a_moment_is_written_in_utc() -> None:
    assert format_time(1_767_225_600.25) == "2026-01-01T00:00:00.250Z"


@pytest.mark.parametrize("text", ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", "2025-12-31T19:00:00.000-05:00"])
def test_a_moment_may_be_of_any_time_zone(text: str) -> None:
    assert parse_time(text) == 1_767_225_600.0


@pytest.mark.parametrize("text", ["", "soon", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "1767225600"])
def test_a_moment_without_a_zone_or_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|time zone|month"):
        parse_time(text)


def test_the_machines_clock_does_not_wait_for_what_is_there_or_past() -> None:
    event = threading.Event()
    begun = SYSTEM_CLOCK.monotonic()
    SYSTEM_CLOCK.sleep(-1)
    assert SYSTEM_CLOCK.wait(event, -1) is False
    event.set()
    assert SYSTEM_CLOCK.wait(event, 3600) is True
    assert 0 <= SYSTEM_CLOCK.monotonic() - begun < 60
