"""One attempt of a run, from the trainer's side: its link, journal, staging and saver, opened and closed together."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any, Protocol

from unbroken.checkpoint import CheckpointWriter, HostState, Manifest, Metrics, Policy, Pruner, restore_newest
from unbroken.clock import Clock
from unbroken.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    ConfigError,
    DamagedError,
    FencedError,
    Interrupted,
    UnbrokenError,
)
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.journal.events import CheckpointCommitted, Event, Note, RunFinished
from unbroken.link.messages import Bye, Committed, FromTrainer, Restored, SaveFailed
from unbroken.training.agent_link import StopRequest
from unbroken.training.cadence import Cadence
from unbroken.training.capture import capture
from unbroken.training.objects import StateObject
from unbroken.training.restore import apply_state, load_state
from unbroken.training.retention import Retention
from unbroken.training.saver import PendingSave, Saver
from unbroken.training.staging import StagingArea

_log = logging.getLogger("unbroken")

_MESSAGE_LIMIT = 2000


class Link(Protocol):
    """What an attempt needs of whoever claimed it: an agent, or this process itself."""

    attempt: int
    claim: str
    stop: StopRequest | None
    """Set, from another thread, when the machine will be taken."""
    advised: bool
    """Set when an interruption became likely; whoever acts on it clears it."""

    def open(self) -> None:
        """Become an attempt of the run; raises an UnbrokenError where that fails."""

    def open_journal(self) -> Journal:
        """The run's journal, for writing with the claimed attempt."""

    def send(self, message: FromTrainer) -> None:
        """Tell what happened; never raises."""

    def close(self, bye: Bye) -> None:
        """Say how the attempt ended; never raises."""


class Attempt:
    """An opened attempt; :meth:`open` makes one. The loop's thread calls it, a :class:`Saver` works behind it."""

    def __init__(self, link: Link, journal: Journal, *, keep: Policy | None = None, clock: Clock) -> None:
        self.link = link
        self.journal = journal
        self._lease = Lease(link.attempt, link.claim)
        self._clock = clock
        self._origin = Origin(host=socket.gethostname(), pid=os.getpid())
        self._staging = StagingArea()
        self._untold: list[Note] = []
        self._lock = threading.Lock()
        self._newest: CheckpointCommitted | None = None
        self._pending: PendingSave | None = None
        self._generators: list[tuple[StateObject, Any]] = []
        self.save_failed = False
        """Set, from another thread, when a save was given up; whoever acts on it clears it."""
        self._writer = CheckpointWriter(journal, self._lease, self._origin, clock=clock)
        self._retention = self._retain(keep) if keep is not None else None
        self._saver = Saver(
            self._writer,
            on_committed=self._committed,
            on_failed=self._failed,
            when_idle=self._retention.turn if self._retention else lambda: None,
            clock=clock,
        )

    @classmethod
    def open(cls, link: Link, objects: list[StateObject], *, keep: Policy | None = None, clock: Clock) -> Attempt:
        """Become an attempt of the run of ``link`` and read its journal.

        Args:
            keep: which checkpoints to keep; None for all.

        Raises:
            UnbrokenError: the run cannot be opened, or the state of the objects cannot be saved.
        """
        try:
            link.open()
            capture(objects)  # a state that cannot be saved is refused now, not at the first save
            return cls(link, link.open_journal(), keep=keep, clock=clock)
        except BaseException as error:
            link.close(farewell(error, step=0))
            raise

    def restore(self, objects: list[StateObject]) -> int:
        """Load the newest sound checkpoint into the objects.

        Returns:
            completed steps; 0 for a run without checkpoints.

        Raises:
            MismatchError: the checkpoint does not fit the objects.
            DamagedError: every checkpoint is damaged.
        """
        began = self._clock.monotonic()
        store = self.journal.store

        def load(_: CheckpointRecord, manifest: Manifest) -> dict[str, Any]:
            return load_state(store, manifest)

        found = restore_newest(store, self.journal.state, load, on_damaged=self.passed_over)
        if found is None:
            self._began_at(0, 0, self._clock.monotonic() - began)
            return 0
        record, manifest, state = found
        apply_state(objects, state, partial=manifest.partial)
        self._generators = [(item, state[item.name]) for item in objects if item.generator and item.name in state]
        self.continue_from(record, manifest, seconds=self._clock.monotonic() - began)
        return record.step

    def rewind_generators(self) -> None:
        """Put the random number generators where they were when the restored step was complete.

        What a program draws between the restore and its first step (``iter(DataLoader)`` draws a seed) is not drawn by
        a run that is never interrupted.
        """
        for item, saved in self._generators:
            item.load(saved)
        self._generators = []

    def continue_from(self, record: CheckpointRecord, manifest: Manifest, *, seconds: float) -> None:
        """Journal that training goes on from a checkpoint, whose restore took ``seconds``: the parent of the next one.

        No save may be under way.
        """
        self._writer.continue_from(record, manifest)
        self._newest = record.event
        self._began_at(record.step, manifest.size, seconds)

    def _began_at(self, step: int, size: int, seconds: float) -> None:
        seconds = round(seconds, 6)
        self._append(
            Note("restored", f"training goes on from step {step}", {"step": step, "seconds": seconds, "bytes": size})
        )
        self.link.send(Restored(step, seconds, size))

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

    def attend(self, cadence: Cadence) -> None:
        """At a step boundary: let the cadence know what other threads reported.

        Raises:
            FencedError: another attempt owns the run.
        """
        self.raise_fatal()
        if self.save_failed:
            self.save_failed = False
            cadence.failed()
        if self.link.advised:
            self.link.advised = False
            cadence.advised()

    def save(
        self, objects: list[StateObject], step: int, metrics: Metrics, *, since: float | None = None
    ) -> PendingSave | None:
        """Stage the state of the objects and hand it to the saver; returns when the loop may go on.

        Args:
            since: when the step was complete, by the monotonic clock; now by default.

        Returns:
            the save on its way, or None where it failed already: the host has no memory free for it now, or the state
            has come to hold something that a checkpoint cannot.
        """
        try:
            return self.stage(objects, step, metrics, since=since)
        except (MemoryError, ConfigError) as error:
            self.report_failure(step, error)
            return None

    def stage(
        self, objects: list[StateObject], step: int, metrics: Metrics, *, since: float | None = None
    ) -> PendingSave | None:
        """As :meth:`save`, but None only while both slots are being uploaded.

        Raises:
            MemoryError: the host has no room for the state.
            ConfigError: a value that a checkpoint cannot hold; names its path.
        """
        began = self._clock.monotonic()
        slot = self._staging.take()
        if slot is None:
            return None
        try:
            captured = capture(objects)
            slot.fill(captured.tensors)
        except BaseException:
            slot.release()
            raise
        state = HostState(
            step, captured.tree, slot.tensors, metrics,
            began_at=began if since is None else since, stall=self._clock.monotonic() - began,
        )  # fmt: skip
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
        if self.journal.state.finished_step != step:
            self._append(RunFinished(step))

    def tell(self, message: FromTrainer) -> None:
        """Say something to the agent."""
        self.link.send(message)

    def close(self, bye: Bye, *, seconds: float) -> None:
        """Let saves under way finish for at most ``seconds``, then say goodbye and take everything down."""
        if not self._saver.close(seconds) and seconds > 0:
            _log.warning("unbroken: a save was still under way after %.0f s and is given up", seconds)
        self.link.close(bye)

    def _retain(self, keep: Policy) -> Retention:
        return Retention(
            Pruner(self.journal, self._lease, self._origin, keep),
            give_way=lambda: self._saver.pressed or self.link.stop is not None,
            report=self._report_retention,
            clock=self._clock,
        )

    def _report_retention(self, text: str) -> None:
        with self._lock:
            self._untold.append(Note("retention", text))
        self._journal_untold()

    def _append(self, event: Event) -> None:
        self.journal.append(event, self._origin, self._lease)

    def passed_over(self, record: CheckpointRecord, error: DamagedError) -> None:
        """Say and journal that a checkpoint is damaged and an older one is used."""
        _log.warning("unbroken: the checkpoint of step %d is damaged and passed over: %s", record.step, error)
        self._append(Note("damaged", error.message, {"step": record.step, "manifest": record.event.manifest}))

    def _committed(self, event: CheckpointCommitted) -> None:
        self._newest = event
        self.link.send(Committed(event.step, event.seconds, event.stall, event.written))
        self._journal_untold()

    def _failed(self, step: int, error: Exception) -> None:
        self.report_failure(step, error)
        self._journal_untold()

    def report_failure(self, step: int, error: Exception) -> None:
        """Say that a save was given up, and journal it with the next commit. Safe from any thread."""
        stands = f"step {self.durable_step} stands" if self.durable_step >= 0 else "nothing is saved yet"
        _log.warning("unbroken: the save of step %d failed, %s, another one follows: %s", step, stands, error)
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
            except UnbrokenError as error:
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
    return Bye("failed", step, _class_name(error), str(error)[:_MESSAGE_LIMIT], code)


def _class_name(error: BaseException) -> str:
    """With its module, unless it is ours or Python's own: a user's NotFoundError must not be taken for ours."""
    kind = type(error)
    if isinstance(error, UnbrokenError) or kind.__module__ == "builtins":
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def refuse_several_ranks() -> None:
    """Refuse to be one of several ranks.

    Raises:
        ConfigError: ``WORLD_SIZE`` says that there are several.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world not in ("", "1"):
        raise ConfigError(
            f"WORLD_SIZE is {world}: this version trains on a single process", kind="ranks",
            hint="Start one process, without torchrun",
        )  # fmt: skip
