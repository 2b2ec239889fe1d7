"""Hearing of interruptions: one module per source, one watcher over them."""

from __future__ import annotations

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.notice import imds
from unbroken.notice.ec2 import EC2Source
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.source import NoticeSource, SourceError
from unbroken.notice.watcher import NoticeWatcher

__all__ = [
    "EC2Source",
    "InterruptionAdvisory",
    "InterruptionNotice",
    "NoticeSource",
    "NoticeWatcher",
    "SourceError",
    "default_sources",
]


def default_sources(*, clock: Clock = SYSTEM_CLOCK) -> list[NoticeSource]:
    """The sources that may answer on this machine, by the environment.

    Raises:
        ConfigError: a variable of the environment for a source is not usable.
    """
    return [] if imds.disabled() else [EC2Source(clock=clock)]
