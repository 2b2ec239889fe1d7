"""What a scheduler of the user's own writes to announce an interruption: a word, or a small JSON object."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from unbroken.clock import parse_duration
from unbroken.notice.moments import parse_moment

_LONGEST = 4096


@dataclass(frozen=True)
class Written:
    """One announcement."""

    action: str
    """``stop``, ``advise`` or ``none``."""
    deadline: float | None = None
    """Wall-clock seconds, or None."""
    seconds: float | None = None
    """From when it was written to the kill, or None."""
    reason: str = ""


def parse_written(data: bytes) -> Written:
    """Read an announcement.

    A word: ``stop``, ``stop 90`` (seconds), ``stop 2min``, ``advise``, ``none``, with an optional reason after a colon.
    Or JSON: ``{"action": "stop", "seconds": 90, "reason": "..."}``, with ``"deadline": "2026-01-01T00:00:00Z"`` (or
    seconds since the epoch) instead of ``seconds``. Nothing at all means ``none``.

    Raises:
        ValueError: it is neither; it says what was found.
    """
    try:
        text = data.decode().strip()
        if len(data) > _LONGEST:
            raise ValueError("too long")
        return _from_json(json.loads(text)) if text.startswith("{") else _from_words(text)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{data[:60]!r} is no announcement") from error


def _from_words(text: str) -> Written:
    head, _, reason = text.partition(":")
    action, _, time = head.strip().lower().partition(" ")
    return Written(
        _known(action or "none"), seconds=_seconds(time.strip()) if time.strip() else None, reason=reason.strip()
    )


def _from_json(fields: dict[str, Any]) -> Written:
    deadline, seconds = fields.get("deadline"), fields.get("seconds")
    return Written(
        _known(str(fields["action"]).lower()),
        None if deadline is None else parse_moment(deadline) if isinstance(deadline, str) else _finite(deadline),
        None if seconds is None else _seconds(seconds) if isinstance(seconds, str) else _finite(seconds),
        " ".join(str(fields.get("reason", "")).split()),
    )


def _known(action: str) -> str:
    if action not in ("stop", "advise", "none"):
        raise ValueError(f"{action!r} is no action")
    return action


def _seconds(text: str) -> float:
    try:
        return _finite(float(text))
    except ValueError:
        return parse_duration(text)


def _finite(number: float) -> float:
    if isinstance(number, bool) or not math.isfinite(number):
        raise ValueError(f"{number!r} is no number of seconds")
    return float(number)
