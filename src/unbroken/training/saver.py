"""The thread that sees staged states become durable, one after another, while the loop goes on."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from unbroken.checkpoint import HostState, Manifest
from unbroken.clock import Clock
from unbroken.errors import FencedError, StoreError, UnbrokenError
from unbroken.journal import CheckpointRecord
from unbroken.journal.events import CheckpointCommitted
from unbroken.link.arena import Slot

_log = logging.getLogger("unbroken")

_LAST_WORDS_SECONDS = 0.1


@dataclass
class PendingSave:
    """A state on its way to the store."""

    step: int
    release: Callable[[], None]
    slot: Slot | None = None
    """Where it lies; None for one that is read from where it lives."""
    state: HostState | None = None
    """Set when it is staged, until its memory is given back."""
    staged: threading.Event = field(default_factory=threading.Event)
    """Set when it is staged, or could not be."""
    wanted: bool = True
    """Cleared where its memory is about to change: what is not committed yet must not be."""
    done: threading.Event = field(default_factory=threading.Event)
    event: CheckpointCommitted | None = None
    """Set when it is durable and committed."""
    error: Exception | None = None
    """Set when it will not become durable."""


class SaveWriter(Protocol):
    """Who makes staged states durable."""

    def offer(self, slots: Sequence[Slot]) -> None:
        """Name the memory into which states will be staged."""

    def announce(self, pending: PendingSave) -> None:
        """Called as soon as a state is staged, whatever is under way before it; never raises, never waits."""

    def write(self, pending: PendingSave) -> CheckpointCommitted:
        """Make a state durable and commit it, trying again where that helps.

        Raises:
            FencedError: a later attempt owns the run.
            UnbrokenError: it was given up.
        """

    def continue_from(self, record: CheckpointRecord, manifest: Manifest) -> None:
        """Name the checkpoint that training goes on from: the parent of the next one."""

    def hurry(self) -> None:
        """Wait for nothing any more: what is not durable yet is given up. Safe from any thread."""


class Saver:
    """Owns the thread.

    Args:
        writer: its ``write`` is called by the thread alone.
        on_committed: called in the thread after each commit.
        on_failed: called with the step when a save is given up, in the thread that gives it up.
        when_idle: called in the thread after a save was committed and everybody knows; must return soon where
            :attr:`pressed` says so.
        clock: for waits.
    """

    def __init__(
        self,
        writer: SaveWriter,
        *,
        on_committed: Callable[[CheckpointCommitted], None],
        on_failed: Callable[[int, Exception], None],
        when_idle: Callable[[], None] = lambda: None,
        clock: Clock,
    ) -> None:
        self._writer = writer
        self._on_committed = on_committed
        self._on_failed = on_failed
        self._when_idle = when_idle
        self._clock = clock
        self._queue: queue.SimpleQueue[PendingSave | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._in_flight = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="unbroken-saver", daemon=True)
        self.fatal: Exception | None = None
        """Why no further save can succeed: another attempt owns the run."""
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a save is being staged, under way or waiting."""
        return self._in_flight > 0

    @property
    def pressed(self) -> bool:
        """Whether the thread is wanted for something else than what it may do while it is idle."""
        return self._in_flight > 0 or self._closing.is_set()

    def begin(self, step: int, release: Callable[[], None], slot: Slot | None = None) -> PendingSave:
        """A save whose state is being staged. :meth:`submit` or :meth:`abandon` must follow.

        Args:
            release: called when its memory is no longer read.
        """
        with self._lock:
            self._in_flight += 1
        return PendingSave(step, release, slot)

    def submit(self, pending: PendingSave, state: HostState) -> None:
        """Its state is staged. Safe from any thread."""
        pending.state = state
        self._writer.announce(pending)
        self._queue.put(pending)
        pending.staged.set()  # whoever comes after it waits for this

    def abandon(self, pending: PendingSave, error: Exception) -> None:
        """Its state could not be staged. Safe from any thread."""
        pending.error = error
        self._tell(pending.step, error)
        self.cancel(pending)

    def cancel(self, pending: PendingSave) -> None:
        """The same where whoever asked for the save knows that it failed."""
        pending.staged.set()
        self._end(pending)

    def wait(self, pending: PendingSave, seconds: float) -> bool:
        """Wait until a save is committed or given up; False if neither came within ``seconds``."""
        return self._clock.wait(pending.done, seconds)

    def close(self, seconds: float) -> bool:
        """Finish what is queued, at most ``seconds`` long, and end the thread; False if it had to be left behind.

        After that time the writer is told to hurry. The thread is a daemon: it keeps no process alive.
        """
        self._queue.put(None)
        self._thread.join(seconds)
        self._closing.set()
        self._writer.hurry()
        if self._thread.is_alive():
            self._thread.join(_LAST_WORDS_SECONDS)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (pending := self._queue.get()) is not None:
            try:
                self._save(pending)
            except BaseException as error:  # noqa: BLE001 - a thread that died would never save again, and say nothing
                _log.debug("in the saver's thread", exc_info=True)
                pending.error = StoreError(
                    f"the save met a fault of our own ({type(error).__name__}: {error})", kind="fault"
                )
                self._tell(pending.step, pending.error)
            finally:
                self._end(pending)
            if pending.event is not None and self.fatal is None:
                self._idle()

    def _end(self, pending: PendingSave) -> None:
        pending.state = None  # its memory is given back: nothing may hold a view of it
        pending.release()
        with self._lock:
            self._in_flight -= 1
        pending.done.set()

    def _tell(self, step: int, error: Exception) -> None:
        try:
            self._on_failed(step, error)
        except BaseException:  # noqa: BLE001 - telling must not end the thread either
            _log.warning("unbroken: the save of step %d failed: %s", step, error)

    def _idle(self) -> None:
        try:
            self._when_idle()
        except Exception as error:  # noqa: BLE001 - whatever it is, the loop must hear of it
            self.fatal = error

    def _save(self, pending: PendingSave) -> None:
        if self.fatal is not None:
            pending.error = self.fatal
            return
        try:
            pending.event = self._writer.write(pending)
        except FencedError as error:
            pending.error = self.fatal = error
        except UnbrokenError as error:  # also a bucket or folder that is away for a while
            pending.error = error
            self._on_failed(pending.step, error)
        else:
            self._on_committed(pending.event)
