"""Time, behind one small face, so that tests need no sleeping; and the durations that people type."""

from __future__ import annotations

import re
import threading
import time
from datetime import UTC, datetime
from typing import Protocol

from unbroken.errors import ConfigError


class Clock(Protocol):
    """What the package asks of time. All values are seconds."""

    def now(self) -> float:
        """Seconds since the Unix epoch; may jump when the machine's clock is set."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back. Use it for every wait and deadline."""

    def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Return True as soon as ``event`` is set, False after ``seconds``."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(max(0.0, seconds))


SYSTEM_CLOCK = SystemClock()

_UNIT_SECONDS = {
    "ms": 0.001, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "m": 60.0, "min": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": 3600.0, "hr": 3600.0, "hour": 3600.0, "hours": 3600.0,
    "d": 86400.0, "day": 86400.0, "days": 86400.0,
}  # fmt: skip
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


def parse_duration(text: str) -> float:
    """Turn ``"10min"``, ``"90s"`` or ``"1h 30min"`` into seconds.

    Raises:
        ConfigError: the text is no duration, has no unit, or is not positive.
    """
    position, seconds = 0, 0.0
    lowered = text.strip().lower()
    while position < len(lowered):
        part = _PART.match(lowered, position)
        if part is None or part[2] not in _UNIT_SECONDS:
            raise _not_a_duration(text)
        seconds += float(part[1]) * _UNIT_SECONDS[part[2]]
        position = part.end()
    if seconds <= 0:
        raise _not_a_duration(text)
    return seconds


def _not_a_duration(text: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is not a duration", kind="duration", hint="Write a number and a unit, such as 10min, 90s or 1h30min"
    )


def format_duration(seconds: float) -> str:
    """Write seconds for people: ``0.4s``, ``42s``, ``3m12s``, ``5h07m``, ``2d03h``."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def format_time(at: float) -> str:
    """Write a wall-clock moment as RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> float:
    """Read an RFC 3339 moment into seconds since the epoch.

    Raises:
        ValueError: the text is no such moment, or names no time zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return moment.timestamp()
