"""Writing a checkpoint of one rank: packs and logged values, then rank record and manifest, and last the journal entry
that makes it exist."""

from __future__ import annotations

import secrets
from itertools import chain

import msgspec

from unbroken.checkpoint.continuation import Continuation
from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.manifest import WHOLE_FORMAT, Manifest, RankRecord, RankRef
from unbroken.checkpoint.packing import Packing
from unbroken.checkpoint.staged import HostState, check_state
from unbroken.checkpoint.uploads import Upload, put_all
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import ConfigError, StoreError
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.journal.events import CheckpointCommitted
from unbroken.store.store import OnPiece


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
        self._parent = Continuation(journal, lease, 0)
        self._unsettled: tuple[str, Manifest] | None = None
        """Key and content of a manifest whose commit failed, so that nobody knows yet whether it took effect."""

    def continue_from(self, record: CheckpointRecord, manifest: Manifest) -> None:
        """Name the checkpoint whose state this attempt restored and verified: the parent of the next one."""
        self._parent = self._parent.go_on_from(record, manifest)

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
        if state.world_size != 1:
            raise ConfigError(f"rank {state.rank} of {state.world_size} has no whole checkpoint to write", kind="state")
        check_state(state)
        self._settle()
        nonce = secrets.token_hex(4)
        packing = self._parent.packing(state, nonce)
        metrics, metrics_digest = self._parent.metrics(state, nonce)
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
        self._parent = self._parent.go_on_from(CheckpointRecord(entry.n, entry.attempt, entry.at, event), manifest)

    def _settle(self) -> None:
        """Find out whether a commit whose reply was lost took effect: then its packs need not be written again."""
        if self._unsettled is None:
            return
        self._journal.refresh()
        key, manifest = self._unsettled
        for record in self._journal.state.commits:
            if record.event.manifest == key:
                self._parent = self._parent.go_on_from(record, manifest)
        self._unsettled = None

    def _rank_record(self, state: HostState, nonce: str, packing: Packing) -> tuple[Upload, RankRef]:
        record = RankRecord(WHOLE_FORMAT, state.step, self._lease.attempt, 0, 1, packing.tensors, packing.packs)
        key = self._parent.rank_key(state, nonce)
        data = msgspec.json.encode(record)
        return Upload(key, [data]), RankRef(key, sha256(data))

    def _manifest(self, state: HostState, nonce: str, packing: Packing, ranks: list[RankRef]) -> Manifest:
        return Manifest(
            format=WHOLE_FORMAT, run=self._journal.info.run, step=state.step, attempt=self._lease.attempt, nonce=nonce,
            created_at=round(self._clock.now(), 3), world_size=1,
            parent=self._parent.key,
            state=state.tree, tensors=packing.tensors, packs=packing.packs, ranks=ranks, partial=state.partial,
        )  # fmt: skip
