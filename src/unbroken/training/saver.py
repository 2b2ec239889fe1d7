"""The thread that makes staged states durable, one after another, while the loop goes on."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from unbroken.checkpoint import CheckpointWriter, HostState
from unbroken.clock import Clock
from unbroken.errors import FencedError, StoreError, UnbrokenError
from unbroken.journal.events import CheckpointCommitted

_log = logging.getLogger("unbroken")

_TRIES = 3
_FIRST_PAUSE = 1.0
_LAST_WORDS_SECONDS = 0.1


@dataclass
class PendingSave:
    """A staged state on its way to the store."""

    state: HostState
    release: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)
    event: CheckpointCommitted | None = None
    """Set when it is durable and committed."""
    error: Exception | None = None
    """Set when it will not become durable."""


class Saver:
    """Owns the upload thread.

    Args:
        writer: used by the thread alone.
        on_committed: called in the thread after each commit.
        on_failed: called in the thread, with the step, when a save is given up.
        when_idle: called in the thread after a save was committed and everybody knows; must return soon where
            :attr:`pressed` says so.
        clock: for pauses between tries.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
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
        """Whether a save is under way or waiting."""
        return self._in_flight > 0

    @property
    def pressed(self) -> bool:
        """Whether the thread is wanted for something else than what it may do while it is idle."""
        return self._in_flight > 0 or self._closing.is_set()

    def submit(self, state: HostState, release: Callable[[], None]) -> PendingSave:
        """Hand a staged state over. ``release`` is called when its memory is no longer read."""
        pending = PendingSave(state, release)
        with self._lock:
            self._in_flight += 1
        self._queue.put(pending)
        return pending

    def wait(self, pending: PendingSave, seconds: float) -> bool:
        """Wait until a save is committed or given up; False if neither came within ``seconds``."""
        return self._clock.wait(pending.done, seconds)

    def close(self, seconds: float) -> bool:
        """Finish what is queued, at most ``seconds`` long, and end the thread; False if it had to be left behind.

        After that time the pauses between tries are cut short. The thread is a daemon: it keeps no process alive.
        """
        self._queue.put(None)
        self._thread.join(seconds)
        self._closing.set()
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
                self._tell(pending.state.step, pending.error)
            finally:
                pending.release()
                with self._lock:
                    self._in_flight -= 1
                pending.done.set()
            if pending.event is not None and self.fatal is None:
                self._idle()

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
            pending.event = self._write(pending.state)
        except FencedError as error:
            pending.error = self.fatal = error
        except UnbrokenError as error:  # also a bucket or folder that is away for a while
            pending.error = error
            self._on_failed(pending.state.step, error)
        else:
            self._on_committed(pending.event)

    def _write(self, state: HostState) -> CheckpointCommitted:
        pause = _FIRST_PAUSE
        for _ in range(_TRIES - 1):
            try:
                return self._writer.write(state)
            except FencedError:
                raise
            except UnbrokenError:
                if self._clock.wait(self._closing, pause):
                    raise
                pause *= 2
        return self._writer.write(state)
