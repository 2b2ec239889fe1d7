"""Writing what one of several ranks has of a checkpoint: packs and logged values, and last the record of them. Nothing
is committed here: whoever sees all records does that (:mod:`unbroken.checkpoint.gather`)."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import chain

import msgspec

from unbroken.checkpoint.continuation import Continuation
from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.manifest import SHARDED_FORMAT, Manifest, RankRecord, RankRef
from unbroken.checkpoint.packing import Packing
from unbroken.checkpoint.staged import HostState, check_state
from unbroken.checkpoint.uploads import Upload, put_all
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.store import Store
from unbroken.store.store import OnPiece


@dataclass(frozen=True)
class RankDurable:
    """What one rank made durable for one step."""

    rank: int
    ref: RankRef
    record: RankRecord


class RankWriter:
    """Writes one rank's parts of the checkpoints of an attempt, one after another, from one thread.

    Args:
        journal: of the run; it is only read.
        lease: of the attempt.
        origin: this process.
        rank: from 0.
        world_size: how many ranks the attempt has.
    """

    def __init__(
        self,
        journal: Journal,
        lease: Lease,
        origin: Origin,
        *,
        rank: int,
        world_size: int,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        self.rank = rank
        self.world_size = world_size
        self.origin = origin
        self._store = journal.store
        self._lease = lease
        self._clock = clock
        self._parent = Continuation(journal, lease, rank)

    def continue_from(self, record: CheckpointRecord, manifest: Manifest) -> None:
        """Name the checkpoint that the next one continues: the one that was restored, or the one committed last.

        May be called from any thread; a write that is under way keeps to its own.

        Args:
            record: as the journal has it.
            manifest: of that checkpoint; this rank's part of it is enough
                (:func:`~unbroken.checkpoint.load_rank_part`).
        """
        self._parent = self._parent.go_on_from(record, manifest)

    def write(self, state: HostState, *, on_piece: OnPiece | None = None) -> RankDurable:
        """Make this rank's part of ``state`` durable.

        Objects of a write that fails half-way stay behind under keys that nothing names. It may be tried again.

        Args:
            state: must not change before this returns, nor before it raises.
            on_piece: called before each piece of at most 16 MiB is sent, with its size in bytes, from one thread at a
                time. What it raises ends the write and is raised here as it is.

        Raises:
            ConfigError: the state contradicts itself, or cannot be expressed; nothing was written.
            ValueError: the state is another rank's.
            StoreError: the storage failed.
        """
        return put_record(self._store, self.write_packs(state, on_piece=on_piece), on_piece=on_piece)

    def write_packs(self, state: HostState, *, on_piece: OnPiece | None = None) -> RankRecord:
        """Make everything durable but the record, which is for :func:`put_record`: the first half of :meth:`write`.

        For whoever learns only afterwards what rank 0's record has to say: the tree of what all ranks share.
        """
        if (state.rank, state.world_size) != (self.rank, self.world_size):
            raise ValueError(f"the state is of rank {state.rank} of {state.world_size}, not {self.rank}")
        check_state(state)
        parent = self._parent
        nonce = secrets.token_hex(4)
        packing = parent.packing(state, nonce)
        metrics, metrics_digest = parent.metrics(state, nonce) if self.rank == 0 else ([], "")
        written = put_all(self._store, chain(metrics, packing.uploads()), on_piece=on_piece)
        record = self._record(state, nonce, packing, parent, written)
        if metrics:
            record = msgspec.structs.replace(record, metrics=metrics[0].key, metrics_sha256=metrics_digest)
        return record

    def _record(self, state: HostState, nonce: str, packing: Packing, parent: Continuation, written: int) -> RankRecord:
        first = self.rank == 0
        return RankRecord(
            SHARDED_FORMAT, state.step, self._lease.attempt, self.rank, self.world_size,
            packing.tensors, packing.packs, nonce=nonce, shared=state.shared, local=state.local,
            state=state.tree if first else None, parent=parent.key if first else "", partial=state.partial,
            written=written, stall=round(state.stall, 6),
            seconds=round(self._clock.monotonic() - state.began_at, 6), created_at=round(self._clock.now(), 3),
            refers_to=parent.key if packing.refers else "",
        )  # fmt: skip


def record_key(record: RankRecord) -> str:
    """Where a rank's record belongs."""
    return f"ranks/{record.attempt}/{record.step}/{record.rank}-{record.nonce}.json"


def put_record(store: Store, record: RankRecord, *, on_piece: OnPiece | None = None) -> RankDurable:
    """Make the record durable: the second half of :meth:`RankWriter.write`."""
    data = msgspec.json.encode(record)
    key = record_key(record)
    put_all(store, [Upload(key, [data])], on_piece=on_piece)
    return RankDurable(record.rank, RankRef(key, sha256(data)), record)
