"""Notices that a source announces no more."""

from __future__ import annotations

from collections.abc import Iterable

from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice

_MISSING_POLLS = 2


class Cancellations:
    """Follows the notices of one source from poll to poll.

    One that is missing twice in a row is cancelled; once is not enough, as services of many machines answer now
    from one and now from another.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[InterruptionNotice, int]] = {}
        """By reason: the notice as it was last heard, and in how many polls since it was missing."""

    def take(self, announced: Iterable[InterruptionNotice | InterruptionAdvisory]) -> list[InterruptionNotice]:
        """Take what a poll gave; returns the notices that are cancelled by now."""
        here = {event.reason: event for event in announced if isinstance(event, InterruptionNotice)}
        cancelled = []
        for reason, (notice, missing) in list(self._known.items()):
            if reason in here:
                continue
            self._known[reason] = (notice, missing + 1)
            if missing + 1 >= _MISSING_POLLS:
                del self._known[reason]
                cancelled.append(notice)
        self._known.update({reason: (notice, 0) for reason, notice in here.items()})
        return cancelled
