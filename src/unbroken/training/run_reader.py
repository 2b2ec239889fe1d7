"""Reading a run's checkpoints without being one of its attempts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unbroken.checkpoint import Manifest, load_manifest, restore_newest
from unbroken.clock import Clock
from unbroken.errors import DamagedError, NotFoundError
from unbroken.journal import CheckpointRecord, Journal
from unbroken.store import open_store
from unbroken.training.attempt import Attempt
from unbroken.training.in_place import InPlaceRestore
from unbroken.training.objects import StateObject
from unbroken.training.restore import load_state

_log = logging.getLogger("unbroken")

_Load = Callable[[CheckpointRecord, Manifest], dict[str, Any]]


@dataclass(frozen=True)
class Loaded:
    """The checkpoint that was loaded, and how long that took."""

    record: CheckpointRecord
    manifest: Manifest
    seconds: float


class RunReader:
    """The checkpoints of the run at ``uri``, which need not exist yet."""

    def __init__(self, uri: str, *, clock: Clock) -> None:
        self._uri = uri
        self._clock = clock
        self._journal: Journal | None = None
        self._attempt: Attempt | None = None

    def share(self, attempt: Attempt) -> None:
        """Read on with the journal of an attempt, and journal damage in its name."""
        self._attempt, self._journal = attempt, attempt.journal

    def records(self) -> list[CheckpointRecord]:
        """The kept checkpoints, in the order of their commits, as of now."""
        journal = self._read_journal()
        return list(journal.state.checkpoints) if journal is not None else []

    def load_into(self, objects: list[StateObject], step: int | None) -> Loaded | None:
        """Load the newest sound checkpoint, or that of ``step``; None for a run without any.

        Raises:
            NotFoundError: there is none of that step.
            MismatchError: it does not fit; nothing was loaded.
            DamagedError: it is damaged, or all are.
        """
        began = self._clock.monotonic()
        records = self._wanted(step)
        if not records:
            return None
        journal = self._opened()
        with InPlaceRestore(journal.store, journal.state, objects, exact=False, clock=self._clock) as restore:
            record, manifest, state = self._load(records, step, restore.load)
            restore.apply(manifest, state)
        return Loaded(record, manifest, self._clock.monotonic() - began)

    def read(self, step: int | None) -> dict[str, Any]:
        """The whole state of a checkpoint, with CPU tensors.

        Raises:
            NotFoundError: there is no checkpoint, or none of that step.
            DamagedError: it is damaged, or all are.
        """
        records = self._wanted(step)
        if not records:
            raise NotFoundError(f"{self._uri} has no checkpoint yet", kind="checkpoint")
        return self._load(records, step, lambda _, manifest: load_state(self._opened().store, manifest))[2]

    def _wanted(self, step: int | None) -> list[CheckpointRecord]:
        """The checkpoints of ``step``, or all, in the order of their commits."""
        records = self.records()
        found = [record for record in records if step is None or record.step == step]
        if step is not None and not found:
            raise NotFoundError(
                f"{self._uri} has no checkpoint of step {step}", kind="checkpoint", hint="steps() says which there are"
            )
        return found

    def _load(
        self, records: list[CheckpointRecord], step: int | None, load: _Load
    ) -> tuple[CheckpointRecord, Manifest, dict[str, Any]]:
        """The newest sound one of some checkpoints; of one that was asked for by its step, that alone."""
        journal = self._opened()
        if step is None:
            found = restore_newest(journal.store, journal.state, load, on_damaged=self._passed_over)
            if found is not None:
                return found
        manifest = load_manifest(journal.store, records[-1])
        return records[-1], manifest, load(records[-1], manifest)

    def _read_journal(self) -> Journal | None:
        if self._journal is not None:
            self._journal.refresh()
            return self._journal
        try:
            self._journal = Journal.open(open_store(self._uri), clock=self._clock)
        except NotFoundError as error:
            if error.kind not in ("run", "folder"):
                raise
        return self._journal

    def _opened(self) -> Journal:
        journal = self._journal or self._read_journal()
        if journal is None:
            raise NotFoundError(f"there is no run at {self._uri}", kind="run")
        return journal

    def _passed_over(self, record: CheckpointRecord, error: DamagedError) -> None:
        if self._attempt is not None:
            self._attempt.passed_over(record, error)
        else:
            _log.warning("unbroken: the checkpoint of step %d is damaged and passed over: %s", record.step, error)
