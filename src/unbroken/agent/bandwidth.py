"""How fast uploads have been going lately."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from unbroken.clock import Clock

_WINDOW_SECONDS = 10.0
"""Uploading time over which the bandwidth is taken: long enough for an average, short enough to see a collapse."""
_MARK_SECONDS = 0.1
_TINY = 1 << 20
"""Bytes below which an upload measures waiting for replies and not the line."""
_FIRST_SECONDS = 0.05
"""Uploading time below which nothing is concluded: buffers on the way take the first bytes at any speed."""


class BandwidthMeter:
    """Bytes a second over the last 10 s of uploading; time without an upload does not count.

    One upload is measured at a time. All methods are safe from any thread.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._marks: deque[tuple[float, int]] = deque([(0.0, 0)])
        """Seconds of uploading and bytes sent, both since the beginning, as they were when bytes were sent."""
        self._marks_before = self._marks.copy()
        self._began: float | None = None
        """When the upload under way began, on the monotonic clock."""
        self._before = (0.0, 0)
        """Seconds and bytes of all uploads before it."""
        self._sent = 0
        """Bytes that it has sent."""

    @contextmanager
    def upload(self) -> Iterator[BandwidthMeter]:
        """Measure an upload; how it ends makes no difference to what it has sent.

        Raises:
            RuntimeError: another one is being measured.
        """
        with self._lock:
            if self._began is not None:
                raise RuntimeError("an upload is being measured already")
            self._began, self._sent = self._clock.monotonic(), 0
            self._marks_before = self._marks.copy()
        try:
            yield self
        finally:
            with self._lock:
                self._end()

    def sent(self, size: int) -> None:
        """Another ``size`` bytes of the upload under way have arrived; outside an upload they do not count."""
        with self._lock:
            if self._began is not None:
                self._sent += size
                self._mark(_MARK_SECONDS)

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second; None before anything was measured, 0.0 where nothing arrives any more."""
        with self._lock:
            seconds, total = self._position()
            if total < _TINY:
                return None
            since, before = self._marks[0]
            for mark in self._marks:
                if seconds - mark[0] < _WINDOW_SECONDS:
                    break
                since, before = mark
            return (total - before) / (seconds - since) if seconds - since >= _FIRST_SECONDS else None

    def _position(self) -> tuple[float, int]:
        if self._began is None:
            return self._before
        return self._before[0] + self._clock.monotonic() - self._began, self._before[1] + self._sent

    def _mark(self, apart: float) -> None:
        """Remember how things stand, unless that was done less than ``apart`` seconds ago."""
        seconds, total = self._position()
        if seconds - self._marks[-1][0] < apart:
            return
        self._marks.append((seconds, total))
        while len(self._marks) > 2 and seconds - self._marks[1][0] >= _WINDOW_SECONDS:
            self._marks.popleft()

    def _end(self) -> None:
        if self._sent >= _TINY:
            self._mark(0.0)
            self._before = self._position()
        else:
            self._marks = self._marks_before
        self._began, self._sent = None, 0
