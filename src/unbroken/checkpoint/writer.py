"""Writing a checkpoint: packs and logged values, then rank record and manifest, and last the journal entry that makes
it exist."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import chain

import msgspec

from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.manifest import WHOLE_FORMAT, Manifest, RankRecord, RankRef
from unbroken.checkpoint.metrics import encode_metrics, metrics_between
from unbroken.checkpoint.packing import Packing
from unbroken.checkpoint.staged import HostState, check_state
from unbroken.checkpoint.uploads import Upload, put_all
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import StoreError
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.journal.events import CheckpointCommitted
from unbroken.store.store import OnPiece


@dataclass(frozen=True)
class _Parent:
    record: CheckpointRecord
    manifest: Manifest


class CheckpointWriter:
    """Writes the checkpoints of one attempt, one after another, from one thread.

    Args:
        journal: of the run, opened for writing.
        lease: the attempt's right to append.
        origin: this process, for the journal.
    """

    def __init__(self, journal: Journal, lease: Lease, origin: Origin, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._journal = journal
        self._store = journal.store
        self._lease = lease
        self._origin = origin
        self._clock = clock
        self._parent: _Parent | None = None
        self._unsettled: tuple[str, Manifest] | None = None
        """Key and content of a manifest whose commit failed, so that nobody knows yet whether it took effect."""

    def continue_from(self, record: CheckpointRecord, manifest: Manifest) -> None:
        """Name the checkpoint whose state this attempt restored and verified: the parent of the next one."""
        self._parent = _Parent(record, manifest)

    def write(self, state: HostState, *, on_piece: OnPiece | None = None) -> CheckpointCommitted:
        """Make a checkpoint of ``state`` durable and commit it.

        Objects of a write that fails half-way stay behind under keys that nothing names; no reader sees them.

        Args:
            state: must not change before this returns, nor before it raises.
            on_piece: called before each piece of at most 16 MiB is sent, with its size in bytes, from one thread at a
                time. What it raises ends the write and is raised here as it is: the previous checkpoint stands, and the
                writer goes on with the next write. The commit itself cannot be stopped.

        Raises:
            ConfigError: the state contradicts itself, or cannot be expressed; nothing was written.
            FencedError: a later attempt owns the run.
            StoreError: the storage failed; the previous checkpoint stands unless the failure hid the success of the
                very last call, and the state may be written again in any case.
        """
        check_state(state)
        self._settle()
        nonce = secrets.token_hex(4)
        packing = self._packing(state, nonce)
        metrics, metrics_digest = self._metrics(state, nonce)
        written = put_all(self._store, chain(metrics, packing.uploads()), on_piece=on_piece)
        rank, rank_ref = self._rank_record(state, nonce, packing)
        manifest = self._manifest(state, nonce, packing, [rank_ref])
        data = msgspec.json.encode(manifest)
        key = f"manifests/{state.step:011d}-{self._lease.attempt}-{nonce}.json"
        # A rank record says what is durable; the manifest does not wait for it.
        written += put_all(self._store, [rank, Upload(key, [data])], on_piece=on_piece)
        event = CheckpointCommitted(
            step=state.step, manifest=key, sha256=sha256(data), size=manifest.size,
            written=written, parent=manifest.parent,
            metrics=metrics[0].key if metrics else "", metrics_sha256=metrics_digest,
            stall=round(state.stall, 6), seconds=round(self._clock.monotonic() - state.began_at, 6),
        )  # fmt: skip
        self._commit(event, manifest)
        return event

    def _commit(self, event: CheckpointCommitted, manifest: Manifest) -> None:
        try:
            entry = self._journal.append(event, self._origin, self._lease)
        except StoreError:
            self._unsettled = event.manifest, manifest
            raise
        self._parent = _Parent(CheckpointRecord(entry.n, entry.attempt, entry.at, event), manifest)

    def _settle(self) -> None:
        """Find out whether a commit whose reply was lost took effect: then its packs need not be written again."""
        if self._unsettled is None:
            return
        self._journal.refresh()
        key, manifest = self._unsettled
        for record in self._journal.state.commits:
            if record.event.manifest == key:
                self._parent = _Parent(record, manifest)
        self._unsettled = None

    def _packing(self, state: HostState, nonce: str) -> Packing:
        """What changed since the parent goes into new packs."""
        parent = self._parent.manifest if self._parent and self._kept(self._parent.record) else None
        prefix = f"packs/{self._lease.attempt}/{state.step}-0"
        return Packing(state.tensors, parent, lambda number: f"{prefix}-{number}-{nonce}.safetensors")

    def _kept(self, record: CheckpointRecord) -> bool:
        """Whether a checkpoint is not retired: the packs of one that is are deleted."""
        return any(kept.event.manifest == record.event.manifest for kept in self._journal.state.checkpoints)

    def _rank_record(self, state: HostState, nonce: str, packing: Packing) -> tuple[Upload, RankRef]:
        record = RankRecord(WHOLE_FORMAT, state.step, self._lease.attempt, 0, 1, packing.tensors, packing.packs)
        key = f"ranks/{self._lease.attempt}/{state.step}/0-{nonce}.json"
        data = msgspec.json.encode(record)
        return Upload(key, [data]), RankRef(key, sha256(data))

    def _metrics(self, state: HostState, nonce: str) -> tuple[list[Upload], str]:
        """The object of the logged values, if there are any, and its digest."""
        after = self._parent.record.step if self._parent else -1
        metrics = metrics_between(state.metrics, after, state.step)
        if not metrics:
            return [], ""
        data = encode_metrics(metrics)
        key = f"metrics/{state.step:011d}-{self._lease.attempt}-{nonce}.json"
        return [Upload(key, [data])], sha256(data)

    def _manifest(self, state: HostState, nonce: str, packing: Packing, ranks: list[RankRef]) -> Manifest:
        return Manifest(
            format=WHOLE_FORMAT, run=self._journal.info.run, step=state.step, attempt=self._lease.attempt, nonce=nonce,
            created_at=round(self._clock.now(), 3), world_size=1,
            parent=self._parent.record.event.manifest if self._parent else "",
            state=state.tree, tensors=packing.tensors, packs=packing.packs, ranks=ranks, partial=state.partial,
        )  # fmt: skip
