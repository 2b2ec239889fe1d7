"""One attempt of a run, from the trainer's side: its link, journal, staging and saver, opened and closed together."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

from unbroken.checkpoint import CheckpointWriter, HostState, Manifest, Metrics, restore_newest
from unbroken.clock import Clock
from unbroken.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    DamagedError,
    FencedError,
    Interrupted,
    StoreError,
    UnbrokenError,
)
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.journal.events import CheckpointCommitted, Event, Note, RunFinished
from unbroken.link.messages import Bye, Committed, FromTrainer, Restored, SaveFailed
from unbroken.store import open_store
from unbroken.training.agent_link import AgentLink
from unbroken.training.capture import capture
from unbroken.training.objects import StateObject
from unbroken.training.restore import apply_state, load_state
from unbroken.training.saver import PendingSave, Saver
from unbroken.training.staging import StagingArea

_log = logging.getLogger("unbroken")

_MESSAGE_LIMIT = 2000


class Attempt:
    """An opened attempt; :meth:`open` makes one. The loop's thread calls it, a :class:`Saver` works behind it."""

    def __init__(self, link: AgentLink, journal: Journal, objects: list[StateObject], *, clock: Clock) -> None:
        self.link = link
        self._journal = journal
        self._lease = Lease(link.attempt, link.claim)
        self._objects = objects
        self._clock = clock
        self._origin = Origin(host=socket.gethostname(), pid=os.getpid())
        self._staging = StagingArea()
        self._untold: list[Note] = []
        self._lock = threading.Lock()
        self._newest: CheckpointCommitted | None = None
        self._pending: PendingSave | None = None
        self.save_failed = False
        """Set, from another thread, when a save was given up; whoever acts on it clears it."""
        self._writer = CheckpointWriter(journal, self._lease, self._origin, clock=clock)
        self._saver = Saver(self._writer, on_committed=self._committed, on_failed=self._failed, clock=clock)

    @classmethod
    def open(cls, uri: str, objects: list[StateObject], *, clock: Clock) -> Attempt:
        """Become an attempt of the run at ``uri`` and read its journal.

        Raises:
            UnbrokenError: the run cannot be opened.
        """
        link = AgentLink(uri, clock=clock)
        try:
            link.open()
            capture(objects)  # a state that cannot be saved is refused now, not at the first save
            return cls(link, Journal.open(open_store(uri), clock=clock), objects, clock=clock)
        except BaseException as error:
            link.close(farewell(error, step=0))
            raise

    def restore(self) -> int:
        """Load the newest sound checkpoint into the objects.

        Returns:
            completed steps; 0 for a run without checkpoints.

        Raises:
            MismatchError: the checkpoint does not fit the objects.
            DamagedError: every checkpoint is damaged.
        """
        began = self._clock.monotonic()
        store = self._journal.store

        def load(_: CheckpointRecord, manifest: Manifest) -> dict[str, Any]:
            return load_state(store, manifest)

        found = restore_newest(store, self._journal.state, load, on_damaged=self._passed_over)
        step, size = 0, 0
        if found is not None:
            record, manifest, state = found
            apply_state(self._objects, state)
            self._writer.continue_from(record, manifest)
            self._newest = record.event
            step, size = record.step, manifest.size
        seconds = round(self._clock.monotonic() - began, 6)
        self._append(
            Note("restored", f"training goes on from step {step}", {"step": step, "seconds": seconds, "bytes": size})
        )
        self.link.send(Restored(step, seconds, size))
        return step

    @property
    def durable_step(self) -> int:
        """Step of the checkpoint that this attempt restored or last committed, or -1."""
        return self._newest.step if self._newest is not None else -1

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._saver.busy

    @property
    def needs_attention(self) -> bool:
        """Whether another thread has left something for the loop to act on."""
        return self.save_failed or self.link.advised or self._saver.fatal is not None

    def raise_fatal(self) -> None:
        """Raise what the saver's thread met and no retry can mend.

        Raises:
            FencedError: another attempt owns the run.
        """
        if self._saver.fatal is not None:
            raise self._saver.fatal

    def save(self, step: int, metrics: Metrics) -> PendingSave | None:
        """Stage the state and hand it to the saver; returns when the loop may go on.

        Returns:
            the save on its way, or None where the host has no memory free for it now.
        """
        began = self._clock.monotonic()
        slot = self._staging.take()
        if slot is None:
            return None
        captured = capture(self._objects)
        try:
            slot.fill(captured.tensors)
        except MemoryError as error:
            slot.release()
            self._report_failure(step, error)
            return None
        state = HostState(
            step, captured.tree, slot.tensors, metrics, began_at=began, stall=self._clock.monotonic() - began
        )
        self._pending = self._saver.submit(state, slot.release)
        return self._pending

    def pending(self, step: int) -> PendingSave | None:
        """The save of this step, if it is under way."""
        found = self._pending
        return found if found is not None and found.state.step == step and not found.done.is_set() else None

    def wait(self, pending: PendingSave, seconds: float) -> bool:
        """Wait for a save to be committed; False if it was given up, or not done within ``seconds``."""
        return self._saver.wait(pending, seconds) and pending.event is not None

    def finish(self, step: int) -> None:
        """Journal that the training is complete at ``step``, whose checkpoint is committed.

        Raises:
            FencedError: another attempt owns the run.
        """
        if self._journal.state.finished_step != step:
            self._append(RunFinished(step))

    def tell(self, message: FromTrainer) -> None:
        """Say something to the agent."""
        self.link.send(message)

    def close(self, bye: Bye, *, seconds: float) -> None:
        """Let saves under way finish for at most ``seconds``, then say goodbye and take everything down."""
        if not self._saver.close(seconds):
            _log.warning("unbroken: a save was still under way after %.0f s and is given up", seconds)
        self.link.close(bye)

    def _append(self, event: Event) -> None:
        self._journal.append(event, self._origin, self._lease)

    def _passed_over(self, record: CheckpointRecord, error: DamagedError) -> None:
        _log.warning("unbroken: the checkpoint of step %d is damaged and passed over: %s", record.step, error)
        self._append(Note("damaged", error.message, {"step": record.step, "manifest": record.event.manifest}))

    def _committed(self, event: CheckpointCommitted) -> None:
        self._newest = event
        self.link.send(Committed(event.step, event.seconds, event.stall, event.written))
        self._journal_untold()

    def _failed(self, step: int, error: Exception) -> None:
        self._report_failure(step, error)
        self._journal_untold()

    def _report_failure(self, step: int, error: Exception) -> None:
        _log.warning("unbroken: the save of step %d failed; training goes on: %s", step, error)
        self.link.send(SaveFailed(step, str(error)))
        with self._lock:
            self._untold.append(Note("save-failed", str(error), {"step": step}))
        self.save_failed = True

    def _journal_untold(self) -> None:
        """Journal what went wrong, if the store answers; otherwise it waits for the next commit."""
        with self._lock:
            notes, self._untold = self._untold, []
        while notes:
            try:
                self._append(notes[0])
            except FencedError:
                return  # the loop hears of it from the next save
            except StoreError as error:
                _log.debug("not journalled yet: %s", error)
                break
            notes.pop(0)
        with self._lock:
            self._untold = notes + self._untold


def farewell(error: BaseException, *, step: int) -> Bye:
    """What to tell the agent of an attempt that ends with ``error`` after ``step`` completed steps."""
    if isinstance(error, Interrupted):
        return Bye("interrupted", step, message=error.message, exit_code=EXIT_INTERRUPTED)
    code = error.exit_code if isinstance(error, UnbrokenError) else EXIT_FAILED
    return Bye("failed", step, type(error).__name__, str(error)[:_MESSAGE_LIMIT], code)
