"""What a source of notices can say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InterruptionNotice:
    """The machine will be taken. ``deadline`` is in wall-clock seconds since the epoch."""

    source: str
    """Who says so: ``ec2``, ``sigterm``, ..."""
    reason: str
    deadline: float


@dataclass(frozen=True)
class InterruptionAdvisory:
    """The machine may be taken soon; nobody knows when."""

    source: str
    reason: str
