"""One attempt of a run, from the trainer's side: its link, journal, staging and saver, opened and closed together."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

from unbroken.checkpoint import Manifest, Metrics, Policy, Pruner
from unbroken.clock import Clock
from unbroken.errors import (
    ConfigError,
    DamagedError,
    StoreError,
)
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.journal.events import CheckpointCommitted, Event, Note, RunFinished
from unbroken.link.arena import SlotOwner
from unbroken.link.messages import Bye, FromTrainer, Restored, Restoring, SaveFailed
from unbroken.training.agent_link import AgentLink
from unbroken.training.cadence import Cadence
from unbroken.training.capture import capture
from unbroken.training.farewell import farewell
from unbroken.training.in_place import InPlaceRestore
from unbroken.training.link import Link
from unbroken.training.local_writer import LocalWriter
from unbroken.training.objects import StateObject
from unbroken.training.ranks import Ranks
from unbroken.training.remote_writer import RemoteWriter, StillUnderWay
from unbroken.training.restore import Staged
from unbroken.training.retention import Retention
from unbroken.training.saver import PendingSave, SaveWriter
from unbroken.training.saves import Saves
from unbroken.training.staging import SnapshotSpoiled
from unbroken.training.team import Team
from unbroken.training.untold import UntoldNotes

_log = logging.getLogger("unbroken")

_LONGEST_SAVE_SECONDS = 3600.0
_SLOT_SECONDS = 60.0
_SLOT_PAUSE = 0.02


class Attempt:
    """An opened attempt; :meth:`open` makes one. The loop's thread calls it, a :class:`Saver` works behind it."""

    def __init__(
        self,
        link: Link,
        journal: Journal,
        *,
        team: Team,
        keep: Policy | None = None,
        overlap: bool = True,
        clock: Clock,
    ) -> None:
        self.team = team
        self.link = link
        self.journal = journal
        self._lease = Lease(link.attempt, link.claim)
        self._clock = clock
        self._origin = Origin(host=socket.gethostname(), pid=os.getpid())
        self._untold = UntoldNotes(self._append)
        self._newest: CheckpointCommitted | None = None
        self._generators: list[tuple[StateObject, Any]] = []
        self._tending = threading.Lock()
        self._going_back = threading.Event()
        self._closing = False
        self._writer = self._choose_writer()
        self._retention = self._retain(keep) if keep is not None and team.chief else None
        self._saves = Saves(
            SlotOwner(link.uri, link.attempt, link.claim),
            self._writer,
            overlap=overlap,
            on_committed=self._committed,
            on_failed=self._failed,
            when_idle=self._tend,
            say=lambda text: _log.warning("unbroken: %s", text),
            ranks=team.ranks,
            clock=clock,
        )
        self.save_failed = False
        """Set, from another thread, when a save was given up; whoever acts on it clears it."""
        self.spoiled = False
        """The same, where it was given up because the state moved while it was copied."""
        self.committed: CheckpointCommitted | None = None
        """The same, where a save was committed."""

    @classmethod
    def open(
        cls,
        link: Link,
        objects: list[StateObject],
        *,
        team: Team | None = None,
        keep: Policy | None = None,
        overlap: bool = True,
        clock: Clock,
    ) -> Attempt:
        """Become an attempt of the run of ``link`` and read its journal. :meth:`prepare` must follow before a save.

        Args:
            team: the other ranks; none by default.
            keep: which checkpoints to keep; None for all.
            overlap: as of :class:`unbroken.Run`.

        Raises:
            UnbrokenError: the run cannot be opened, or the state of the objects cannot be saved.
        """
        try:
            team = team or Team(Ranks(), clock=clock)
            journal = team.open(link)
            capture(objects, team.ranks)  # a state that cannot be saved is refused now, not at the first save
            return cls(link, journal, team=team, keep=keep, overlap=overlap, clock=clock)
        except BaseException as error:
            link.close(farewell(error, step=0))
            raise

    def prepare(self, objects: list[StateObject]) -> None:
        """Make the memory ready into which the state will be copied.

        Raises:
            ConfigError: the state holds what a checkpoint cannot; names its path.
        """
        self._saves.prepare(objects, [returned.slot for returned in self.link.returned])
        self.link.returned = []

    def restore(self, objects: list[StateObject]) -> int:
        """Load the newest sound checkpoint into the objects.

        Returns:
            completed steps; 0 for a run without checkpoints.

        Raises:
            MismatchError: the checkpoint does not fit the objects.
            DamagedError: every checkpoint is damaged.
        """
        began = self._clock.monotonic()
        store, state = self.journal.store, self.team.restorable(self.journal.state)
        with InPlaceRestore(
            store, state, objects,
            ranks=self.team.ranks, staged=self._left_in_memory, tell=self._restoring, clock=self._clock,
        ) as restore:  # fmt: skip
            found = self.team.restore_newest(
                store, state, restore.load, read_manifest=restore.read_manifest, on_damaged=self.passed_over
            )
            if found is None:
                self._began_at(0, 0, self._clock.monotonic() - began)
                return 0
            record, manifest, loaded = found
            restore.apply(manifest, loaded)
        self._generators = [(item, loaded[item.name]) for item in objects if item.generator and item.name in loaded]
        seconds = self._clock.monotonic() - began
        # Of several ranks a part of it may: too little to speak of where the ranks dealt the state out among them.
        from_memory = not self.team.several and bool(self._left_in_memory(record))
        self.continue_from(record, manifest, seconds=seconds, from_memory=from_memory)
        return record.step

    def _restoring(self, done: int, total: int) -> None:
        self.link.send(Restoring(done, total))

    def _left_in_memory(self, record: CheckpointRecord) -> Staged | None:
        """The bytes of this checkpoint's tensors, where an earlier trainer on this node has left them."""
        for returned in self.link.returned:
            if returned.manifest == record.event.manifest:
                return returned.tensors()
        return None

    def rewind_generators(self) -> None:
        """Put the random number generators where they were when the restored step was complete.

        What a program draws between the restore and its first step (``iter(DataLoader)`` draws a seed) is not drawn by
        a run that is never interrupted.
        """
        for item, saved in self._generators:
            item.load(saved)
        self._generators = []

    def continue_from(
        self, record: CheckpointRecord, manifest: Manifest, *, seconds: float, from_memory: bool = False
    ) -> None:
        """Journal that training goes on from a checkpoint, whose restore took ``seconds``: the parent of the next one.

        No save may be under way.
        """
        self._going_back.set()
        try:
            with self._tending:  # what the next save builds on must not be retired at the same time
                kept = not self.team.chief or self._keeps(record)
                if kept:  # else retired since it was read: nothing may build on its packs
                    self._writer.continue_from(record, manifest)
        finally:
            self._going_back.clear()
        self._newest = record.event
        self._began_at(
            record.step, record.event.size, seconds, record.event.manifest if kept else "", from_memory=from_memory
        )

    def _keeps(self, record: CheckpointRecord) -> bool:
        return any(kept.event.manifest == record.event.manifest for kept in self.journal.state.checkpoints)

    def _began_at(self, step: int, size: int, seconds: float, manifest: str = "", *, from_memory: bool = False) -> None:
        seconds = round(seconds, 6)
        data = {"step": step, "seconds": seconds, "bytes": size, "from_memory": from_memory}
        self._append(Note("restored", f"training goes on from step {step}", data))
        self.link.send(Restored(step, seconds, size, manifest, from_memory))

    @property
    def durable_step(self) -> int:
        """Step of the checkpoint that this attempt restored or last committed, or -1."""
        return self._newest.step if self._newest is not None else -1

    @property
    def newest_save(self) -> PendingSave | None:
        """The save that was begun last."""
        return self._saves.newest

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._saves.busy

    @property
    def needs_attention(self) -> bool:
        """Whether another thread has left something for the loop to act on."""
        return (
            self.save_failed
            or self.spoiled
            or self.link.advised
            or self.committed is not None
            or self._saves.fatal is not None
        )

    def raise_fatal(self) -> None:
        """Raise what the saver's thread met and no retry can mend.

        Raises:
            FencedError: another attempt owns the run.
        """
        if self._saves.fatal is not None:
            raise self._saves.fatal

    def attend(self, cadence: Cadence) -> None:
        """At a step boundary: let the cadence know what other threads reported.

        Raises:
            FencedError: another attempt owns the run.
        """
        self.raise_fatal()
        if self.save_failed:
            self.save_failed = False
            cadence.failed()
        if self.spoiled:
            self.spoiled = False
            cadence.advised()
        if self.link.advised:
            self.link.advised = False
            cadence.advised()
        if (event := self.committed) is not None:
            self.committed = None
            cadence.measured(event.stall, event.seconds)

    def save(self, objects: list[StateObject], step: int, metrics: Metrics) -> PendingSave | None:
        """Stage the state of the objects and hand it on; returns when the loop may go on.

        Returns:
            the save on its way, or None where it failed already: the host has no memory free for it now, or the state
            has come to hold something that a checkpoint cannot.
        """
        try:
            return self.stage(objects, step, metrics)
        except (MemoryError, ConfigError) as error:
            self.report_failure(step, error)
            return None

    def stage(
        self,
        objects: list[StateObject],
        step: int,
        metrics: Metrics,
        *,
        since: float | None = None,
        standing: bool = False,
    ) -> PendingSave | None:
        """As :meth:`save`, but None only while all slots are being uploaded.

        Args:
            since: when the step was complete, by the monotonic clock; now by default.
            standing: the loop stands still until the save is durable.

        Raises:
            MemoryError: the host has no room for the state.
            ConfigError: a value that a checkpoint cannot hold; names its path.
        """
        return self._saves.begin(objects, step, metrics, since=since, standing=standing, patience=self._patience)

    def _patience(self) -> float:
        stop = self.link.stop
        return _LONGEST_SAVE_SECONDS if stop is None else max(0.0, stop.until - self._clock.monotonic())

    def save_with_others(self, objects: list[StateObject], step: int, metrics: Metrics) -> PendingSave | None:
        """As :meth:`save`, of a step that all ranks save; waits for a slot: without this part none is whole.

        Returns:
            the save on its way; None where it failed already, or no slot was free within a minute.
        """
        deadline = self._clock.monotonic() + min(_SLOT_SECONDS, self._patience())
        while True:
            failed = self.save_failed
            pending = self.save(objects, step, metrics)
            if pending is not None or (self.save_failed and not failed):
                return pending
            if self._clock.monotonic() >= deadline:
                self.report_failure(step, StoreError("the saves before it are still under way", kind="slots"))
                return None
            self._clock.sleep(_SLOT_PAUSE)

    def pending(self, step: int) -> PendingSave | None:
        """The save of this step, if it is under way."""
        return self._saves.pending(step)

    def wait(self, pending: PendingSave, seconds: float) -> bool:
        """Wait for a save to be committed; False if it was given up, or not done within ``seconds``."""
        return self._saves.wait(pending, seconds)

    def finish(self, step: int) -> None:
        """Journal that the training is complete at ``step``, whose checkpoint is committed.

        Raises:
            FencedError: another attempt owns the run.
        """
        if self.journal.state.finished_step != step:
            self._append(RunFinished(step))
        self.team.await_finish()

    def tell(self, message: FromTrainer) -> None:
        """Say something to the agent."""
        self.link.send(message)

    def close(self, bye: Bye, *, seconds: float) -> None:
        """Let saves under way finish for at most ``seconds``, then say goodbye and take everything down."""
        self._closing = True
        try:
            if not self._saves.close(seconds) and seconds > 0:
                _log.warning("unbroken: a save was still under way after %.0f s and is given up", seconds)
        finally:  # also where somebody lost patience and interrupted the wait
            for returned in self.link.returned:
                returned.slot.close()
            self.link.close(bye)

    def _choose_writer(self) -> SaveWriter:
        def local() -> LocalWriter:
            return LocalWriter(self.journal, self._lease, self._origin, clock=self._clock)

        return RemoteWriter(self.link, local, clock=self._clock) if isinstance(self.link, AgentLink) else local()

    def _retain(self, keep: Policy) -> Retention:
        return Retention(
            Pruner(self.journal, self._lease, self._origin, keep),
            give_way=lambda: self._saves.pressed or self.link.stop is not None or self._going_back.is_set(),
            report=self._report_retention,
            clock=self._clock,
        )

    def _tend(self) -> None:
        if self._retention is not None:
            with self._tending:
                self._retention.turn()

    def _report_retention(self, text: str) -> None:
        self._untold.add(Note("retention", text))
        self._untold.tell()

    def warn(self, topic: str, text: str) -> None:
        """Say something that the user should act on, and journal it with the next commit; once for all ranks."""
        if self.team.chief:
            _log.warning("unbroken: %s", text)
            self._untold.add(Note(topic, text))

    def _append(self, event: Event) -> None:
        """Journal something; of several ranks the first one does, for all."""
        if self.team.chief:
            self.journal.append(event, self._origin, self._lease)

    def passed_over(self, record: CheckpointRecord, error: DamagedError) -> None:
        """Say and journal that a checkpoint is damaged and an older one is used."""
        _log.warning("unbroken: the checkpoint of step %d is damaged and passed over: %s", record.step, error)
        self._append(Note("damaged", error.message, {"step": record.step, "manifest": record.event.manifest}))

    def _committed(self, event: CheckpointCommitted) -> None:
        self._newest = self.committed = event
        self._untold.tell()

    def _failed(self, step: int, error: Exception) -> None:
        if isinstance(error, SnapshotSpoiled):
            self.spoiled = True
        if self._closing and isinstance(error, StillUnderWay):
            _log.warning("unbroken: %s; it goes on", error.message)
            return
        self.report_failure(step, error)
        self._untold.tell()

    def report_failure(self, step: int, error: Exception) -> None:
        """Say that a save was given up, and journal it with the next commit. Safe from any thread."""
        stands = f"step {self.durable_step} stands" if self.durable_step >= 0 else "nothing is saved yet"
        next_one = "" if self._closing else ", another one follows"
        # Of the others each agent says it, once for all ranks of its node.
        level = logging.WARNING if self.team.chief else logging.DEBUG
        _log.log(level, "unbroken: the save of step %d failed, %s%s: %s", step, stands, next_one, error)
        self.link.send(SaveFailed(step, str(error)))
        self._untold.add(Note("save-failed", str(error), {"step": step}))
        self.save_failed = True
