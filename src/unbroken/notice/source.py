"""What a source of notices must offer."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Protocol

from unbroken.errors import ConfigError, UnbrokenError
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice

POLL_VARIABLE = "UNBROKEN_NOTICE_POLL"
"""Environment variable with the seconds between two polls of each source."""

_SHORTEST, _LONGEST = 0.01, 60.0


class SourceError(UnbrokenError):
    """A source that used to answer does so no more; the watcher goes on asking."""


class NoticeSource(Protocol):
    """One place that announces interruptions. One thread polls it, so it needs no lock."""

    @property
    def name(self) -> str:
        """A short word for it, such as ``ec2``."""

    def poll(self) -> Sequence[InterruptionNotice | InterruptionAdvisory]:
        """What is announced at this moment; what was given before may be given again. Returns within seconds.

        Raises:
            SourceError: something the user should know; the watcher reports it and polls again.
        """

    def interval(self) -> float:
        """Seconds until the next poll is due."""


def poll_interval(given: float | None, default: float) -> float:
    """The seconds between two polls: what the caller gave, else the environment's, else the default.

    Raises:
        ConfigError: not a number from 0.01 to 60. Slower polling would miss a notice of two minutes.
    """
    where, seconds = "the poll interval", given
    if seconds is None:
        text = os.environ.get(POLL_VARIABLE, "")
        if not text:
            return default
        where, seconds = f"{POLL_VARIABLE}={text!r}", _number(text)
    if not _SHORTEST <= seconds <= _LONGEST:
        raise ConfigError(
            f"{where} is not a usable time between polls ({seconds:g} s)",
            kind="notice-poll",
            hint=f"Give seconds from {_SHORTEST:g} to {_LONGEST:g}",
        )
    return seconds


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
