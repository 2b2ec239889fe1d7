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
from unbroken.training.objects import StateObject
from unbroken.training.restore import apply_state, compare_names, load_state

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
        names = [item.name for item in objects]

        def load(_: CheckpointRecord, manifest: Manifest) -> dict[str, Any]:
            compare_names(objects, list(manifest.state), partial=manifest.partial, exact=False)
            return load_state(self._opened().store, manifest, names)

        found = self._load(step, load)
        if found is None:
            return None
        record, manifest, state = found
        apply_state(objects, state, partial=manifest.partial)
        return Loaded(record, manifest, self._clock.monotonic() - began)

    def read(self, step: int | None) -> dict[str, Any]:
        """The whole state of a checkpoint, with CPU tensors.

        Raises:
            NotFoundError: there is no checkpoint, or none of that step.
            DamagedError: it is damaged, or all are.
        """
        found = self._load(step, lambda _, manifest: load_state(self._opened().store, manifest))
        if found is None:
            raise NotFoundError(f"{self._uri} has no checkpoint yet", kind="checkpoint")
        return found[2]

    def _load(self, step: int | None, load: _Load) -> tuple[CheckpointRecord, Manifest, dict[str, Any]] | None:
        records = self.records()
        if step is None:
            if not records:
                return None
            journal = self._opened()
            return restore_newest(journal.store, journal.state, load, on_damaged=self._passed_over)
        found = [record for record in records if record.step == step]
        if not found:
            raise NotFoundError(
                f"{self._uri} has no checkpoint of step {step}", kind="checkpoint", hint="steps() says which there are"
            )
        manifest = load_manifest(self._opened().store, found[-1])
        return found[-1], manifest, load(found[-1], manifest)

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
