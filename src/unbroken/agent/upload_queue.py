"""The uploads that wait and the one under way, between the threads that ask for them and the one that does them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from unbroken.agent.arena import Arena
from unbroken.agent.bandwidth import BandwidthMeter
from unbroken.agent.emergency import Choice
from unbroken.agent.triage import Triage, Upload
from unbroken.clock import Clock
from unbroken.link.channel import Channel


class UploadQueue:
    """In the order in which they were announced. All methods are safe from any thread.

    Args:
        arena: knows how many slots a trainer has.
        chose: told of each choice that a notice makes necessary, in whichever thread it is made.
    """

    def __init__(self, arena: Arena, chose: Callable[[Choice], None], clock: Clock) -> None:
        self.meter = BandwidthMeter(clock)
        self._arena = arena
        self._chose = chose
        self._triage = Triage(self.meter, clock)
        self._changed = threading.Condition()
        self._waiting: deque[Upload] = deque()
        self._current: Upload | None = None
        self._closed = False

    @property
    def pressed(self) -> bool:
        """Whether a notice runs: no time is to be lost."""
        return self._triage.pressed

    def add(self, upload: Upload) -> bool:
        """Put another one at the end; False where the queue is closed."""
        with self._changed:
            if self._closed:
                return False
            if self._triage.pressed:
                upload.hurry.set()
            self._waiting.append(upload)
            choice = self._weigh()
            self._changed.notify_all()
        self._say(choice)
        return True

    def next(self) -> Upload | None:
        """Wait for the next one, which is under way from now on; None where the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            choice = self._weigh()
            self._current = self._waiting.popleft() if self._waiting else None
            current = self._current
        self._say(choice)
        return current

    def done(self) -> bool:
        """The one under way is dealt with, in whichever way; whether it was the last."""
        with self._changed:
            self._current = None
            self._changed.notify_all()
            return not self._waiting

    def piece(self, size: int) -> None:
        """The one under way sends ``size`` bytes more."""
        with self._changed:
            if self._current is not None:
                self._current.sent += size
            choice = self._weigh()
        self._say(choice)

    def left(self) -> tuple[int, ...]:
        """Steps that are not dealt with, oldest first."""
        with self._changed:
            return tuple(upload.step for upload in self._all())

    def drain(self, seconds: float) -> bool:
        """Wait until all are dealt with; False if that takes longer than ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._all(), seconds)

    def parted(self, trainer: Channel) -> None:
        """``trainer`` is gone: what it announced is all that is left of its work."""
        with self._changed:
            for upload in self._all():
                upload.orphan = upload.orphan or upload.trainer is trainer
            choice = self._weigh()
        self._say(choice)

    def begin(self) -> None:
        """Another attempt begins."""
        with self._changed:
            self._triage.forget()

    def press(self, until: float) -> None:
        """The machine will be taken, and all must be committed by ``until``, in monotonic seconds."""
        with self._changed:
            self._triage.press(until)
            for upload in self._all():
                upload.hurry.set()
            choice = self._weigh()
        self._say(choice)

    def stopping(self, step: int) -> None:
        """The trainers stop at ``step``."""
        with self._changed:
            self._triage.stopping(step)
            choice = self._weigh()
        self._say(choice)

    def abandon(self, reason: str) -> None:
        """Give up all that is not dealt with."""
        with self._changed:
            for upload in self._all():
                upload.abandon(reason)

    def close(self, reason: str) -> None:
        """Take no more, and give up what there is."""
        with self._changed:
            self._closed = True
            self.abandon(reason)
            self._changed.notify_all()

    def _all(self) -> list[Upload]:
        return [*([self._current] if self._current is not None else []), *self._waiting]

    def _weigh(self) -> Choice | None:
        uploads = self._all() if self._triage.pressed else []
        return self._triage.weigh(uploads, self._arena.count(uploads[-1].trainer)) if uploads else None

    def _say(self, choice: Choice | None) -> None:
        """Without the lock: whoever is told may ask us something."""
        if choice is not None:
            self._chose(choice)
