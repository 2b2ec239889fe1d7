"""The interruption that is coming, if any: whoever announces it, the earliest deadline counts."""

from __future__ import annotations

import signal

from unbroken.agent.deadline import Deadline, Pressure
from unbroken.agent.events import AdvisoryHeard, Mailbox, NoticeHeard, Trouble
from unbroken.clock import Clock
from unbroken.notice import InterruptionNotice, NoticeSource, NoticeWatcher
from unbroken.notice.grace import warning_from

_JOIN_SECONDS = 5.0
_CLOCKS_DIFFER = 2.0
"""Seconds by which the same deadline may seem to be another one on two nodes."""


class Interruption:
    """Owns the notice watcher and knows the time that is left. For the main loop's thread alone.

    A context manager: the sources are watched inside the block.

    Args:
        grace: seconds from a stop signal to the kill.
    """

    def __init__(self, sources: list[NoticeSource], mailbox: Mailbox, grace: float, clock: Clock) -> None:
        self._grace = grace
        self._warning = warning_from()
        self._clock = clock
        self._watcher = NoticeWatcher(
            sources,
            lambda notice: mailbox.post(NoticeHeard(notice)),
            lambda advisory: mailbox.post(AdvisoryHeard(advisory)),
            lambda name, error: mailbox.post(Trouble(f"notices from {name}: {error}")),
            on_cancelled=lambda notice: mailbox.post(Trouble(f"{notice.source} cancels its notice: {notice.reason}")),
            clock=clock,
        )
        self.announced = False
        """Whether one is coming; true a moment before :attr:`notice` is there."""
        self.notice: InterruptionNotice | None = None
        self._deadline: Deadline | None = None
        self._agreed: set[str] = set()
        """Reasons of notices that others have heard."""

    def __enter__(self) -> Interruption:
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The owner leaves because of the notice, with everything saved that can be.
        leaving = self.notice is not None and kind is None
        self._watcher.close(timeout=self.bounded(_JOIN_SECONDS), acknowledge=leaving)

    def signalled(self, number: signal.Signals, whom: str, at: float = 0.0) -> None:
        """Take a stop signal for a notice; it comes back through the mailbox.

        Args:
            at: when it was heard, in wall-clock seconds, from where the grace counts; 0: now.
        """
        self.announced = True
        now = self._clock.now()
        heard_at = min(at, now) if at > 0 else now
        seconds = self._warning if number == signal.SIGUSR1 else self._grace
        self._watcher.report(
            InterruptionNotice(number.name.lower(), f"{whom} received {number.name}", heard_at + seconds)
        )

    def agreed(self, source: str, reason: str, deadline: float) -> None:
        """All ranks stop because of a notice that another node heard: it comes back through the mailbox as one of ours.

        Not where one of ours is as near: the clocks of two nodes never agree to the second.

        Args:
            deadline: in wall-clock seconds since the epoch.
        """
        if self.notice is not None and deadline > self.notice.deadline - _CLOCKS_DIFFER:
            return
        self.announced = True
        reason = f"{reason} (heard by another rank)"
        self._agreed.add(reason)
        self._watcher.report(InterruptionNotice(source, reason, deadline))

    def is_agreed(self, notice: InterruptionNotice) -> bool:
        """Whether another node heard it, and journals it."""
        return notice.reason in self._agreed

    def accept(self, notice: InterruptionNotice) -> None:
        """Keep to this notice from now on. The watcher gives an earlier deadline only."""
        now = self._clock.monotonic()
        self.announced = True
        self.notice = notice
        # On the monotonic clock from here on: a wall clock that is set must not move the kill.
        self._deadline = Deadline(now, now + notice.deadline - self._clock.now())

    def pressure(self) -> Pressure:
        """How hard to press now."""
        return Pressure.NONE if self._deadline is None else self._deadline.pressure(self._clock.monotonic())

    def next_change(self) -> float | None:
        """Seconds until the pressure rises; None where nothing is coming."""
        return None if self._deadline is None else self._deadline.next_change(self._clock.monotonic())

    def time_to_upload(self, longest: float) -> float:
        """``longest`` seconds, or less where the agent must have left sooner; never negative."""
        if self._deadline is None:
            return longest
        return max(0.0, min(longest, self._deadline.leave_at - self._clock.monotonic()))

    def bounded(self, seconds: float, *, by_kill: bool = False) -> float:
        """``seconds``, or less where the deadline (or the kill before it) comes sooner; never negative."""
        if self._deadline is None:
            return seconds
        until = self._deadline.kill_at if by_kill else self._deadline.at
        return max(0.0, min(seconds, until - self._clock.monotonic()))
