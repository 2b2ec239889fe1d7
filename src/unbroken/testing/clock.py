"""Time that passes only when a test says so."""

from __future__ import annotations

import threading
import time

_POLL = 0.002


class FakeClock:
    """A :class:`~unbroken.clock.Clock` without real sleeping; safe to use from any thread.

    By itself it moves on: ``sleep`` and ``wait`` add their seconds to the time and return at once. With
    ``manual`` they block until another thread has advanced the time far enough; a thread that polls needs
    this, as it would spin otherwise.

    Args:
        now: the wall-clock time at the start, in seconds since the epoch.
        manual: only :meth:`advance` moves the time.
        patience: how many real seconds a manual ``sleep`` or ``wait`` blocks before it gives up, so that a
            test that forgot to advance fails instead of hanging.
    """

    def __init__(self, now: float = 1_750_000_000.0, *, manual: bool = False, patience: float = 60.0) -> None:
        self._changed = threading.Condition()
        self._now = now
        self._monotonic = 1000.0
        self._manual = manual
        self._patience = patience
        self._waiting: dict[object, tuple[float, threading.Event]] = {}

    def now(self) -> float:
        with self._changed:
            return self._now

    def monotonic(self) -> float:
        with self._changed:
            return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        if seconds < 0:
            raise ValueError(f"time cannot pass by {seconds} s; set_now() moves the wall clock back")
        with self._changed:
            self._now += seconds
            self._monotonic += seconds
            self._changed.notify_all()

    def set_now(self, at: float) -> None:
        """Set the wall clock, as an administrator or NTP may; the monotonic time stays."""
        with self._changed:
            self._now = at

    def sleep(self, seconds: float) -> None:
        self.wait(threading.Event(), seconds)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """As of :class:`~unbroken.clock.Clock`.

        Raises:
            TimeoutError: in manual mode nobody advanced the time or set the event within the patience.
        """
        if event.is_set():
            return True
        if not self._manual:
            self.advance(max(0.0, seconds))
            return event.is_set()
        ticket = object()
        with self._changed:
            due = self._monotonic + seconds
            self._waiting[ticket] = (due, event)
            self._changed.notify_all()
        try:
            return self._wait_until(due, event)
        finally:
            with self._changed:
                del self._waiting[ticket]

    def _wait_until(self, due: float, event: threading.Event) -> bool:
        give_up_at = time.monotonic() + self._patience
        # An event cannot be told to wake its waiters for another reason, so this looks at both in turn.
        while not event.wait(_POLL):
            if self.monotonic() >= due:
                return event.is_set()
            if time.monotonic() >= give_up_at:
                raise TimeoutError(f"nobody advanced the fake clock to {due} within {self._patience} s")
        return True

    def until_waiting(self, threads: int = 1, *, timeout: float = 10.0) -> None:
        """Block until at least ``threads`` threads wait for a time that is yet to come (manual mode).

        Then all that was due has been done, and the next :meth:`advance` is the next thing that happens.

        Raises:
            TimeoutError: it did not come to that within ``timeout`` real seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._blocked() >= threads, timeout):
                raise TimeoutError(f"{self._blocked()} of {threads} threads wait on the fake clock after {timeout} s")

    def _blocked(self) -> int:
        return sum(due > self._monotonic and not event.is_set() for due, event in self._waiting.values())
