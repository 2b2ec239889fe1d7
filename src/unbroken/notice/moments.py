"""The moments that documents of clouds say."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

from unbroken.clock import parse_time


def parse_moment(text: str) -> float:
    """Read ``2026-01-01T00:00:00Z`` or ``Thu, 01 Jan 2026 00:00:00 GMT`` into seconds since the epoch.

    Raises:
        ValueError: the text is neither.
        OverflowError: no clock can show it.
    """
    try:
        return parse_time(text)
    except ValueError:
        moment = parsedate_to_datetime(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
