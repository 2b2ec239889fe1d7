"""What a source of notices must offer."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from unbroken.errors import ConfigError, UnbrokenError
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice

POLL_VARIABLE = "UNBROKEN_NOTICE_POLL"
"""Environment variable with the seconds between two polls of each source."""

_SHORTEST, _LONGEST = 0.01, 60.0

Announced: TypeAlias = list[InterruptionNotice | InterruptionAdvisory]
"""What a source says at one moment."""


class SourceError(UnbrokenError):
    """Something about a source that people should know; the watcher goes on asking."""


class NoAnswer(Exception):  # noqa: N818 - on most machines it is the normal state
    """A service did not answer, or not as it should. The message says what was found."""


@dataclass(frozen=True)
class Reach:
    """Whether a source can be heard at the moment."""

    answers: bool
    why: str = ""
    """Where it does not: what was found."""


class NoticeSource(Protocol):
    """One place that announces interruptions. One thread uses it, so it needs no lock."""

    @property
    def name(self) -> str:
        """A short word for it, such as ``ec2``."""

    def poll(self) -> Sequence[InterruptionNotice | InterruptionAdvisory]:
        """All that is announced at this moment, also what was given before; while nobody answers, what was heard last.

        What is given no more counts as cancelled. Returns within seconds.

        Raises:
            SourceError: something the user should know; the watcher reports it and polls again.
        """

    def interval(self) -> float:
        """Seconds until the next poll is due."""

    def reach(self) -> Reach:
        """How the last poll went."""

    def close(self) -> None:
        """Let go of what it holds. It is not polled after that."""


@runtime_checkable
class Acknowledging(Protocol):
    """A source that can be told that this machine is ready to be taken."""

    def acknowledge(self) -> None:
        """Say that everything is saved. Called at most once, after the last poll; it returns within seconds.

        Raises:
            SourceError: nobody took it.
        """


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
