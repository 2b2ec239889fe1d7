"""Writing a checkpoint: packs and logged values, then rank record and manifest, and last the journal entry that makes
it exist."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import msgspec

from unbroken.checkpoint.digest import chunk_digests, sha256
from unbroken.checkpoint.manifest import FORMAT, Manifest, PackRecord, RankRecord, RankRef, Slice, TensorRecord
from unbroken.checkpoint.metrics import encode_metrics, metrics_between
from unbroken.checkpoint.packs import HostTensor, build_pack, plan_packs
from unbroken.checkpoint.staged import HostState, check_state
from unbroken.checkpoint.uploads import Upload, put_all
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import StoreError
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.journal.events import CheckpointCommitted


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

    def write(self, state: HostState) -> CheckpointCommitted:
        """Make a checkpoint of ``state`` durable and commit it.

        Objects of a write that fails half-way stay behind under keys that nothing names; no reader sees them.

        Raises:
            ConfigError: the state contradicts itself, or cannot be expressed; nothing was written.
            FencedError: a later attempt owns the run.
            StoreError: the storage failed; the previous checkpoint stands unless the failure hid the success of the
                very last call, and the state may be written again in any case.
        """
        check_state(state)
        self._settle()
        nonce = secrets.token_hex(4)
        tensors, packs, contents = self._packs(state, nonce)
        metrics, metrics_digest = self._metrics(state, nonce)
        rank, rank_ref = self._rank_record(state, nonce, tensors, packs)
        manifest = self._manifest(state, nonce, tensors, packs, [rank_ref])
        data = msgspec.json.encode(manifest)
        key = f"manifests/{state.step:011d}-{self._lease.attempt}-{nonce}.json"
        first, second = [*contents, *metrics], [rank, Upload(key, [data])]
        put_all(self._store, first)
        put_all(self._store, second)  # a rank record says what is durable; the manifest does not wait for it
        event = CheckpointCommitted(
            step=state.step, manifest=key, sha256=sha256(data), size=manifest.size,
            written=sum(upload.size for upload in first + second), parent=manifest.parent,
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

    def _packs(self, state: HostState, nonce: str) -> tuple[list[TensorRecord], list[PackRecord], list[Upload]]:
        """Packs with the tensors that changed since the parent; the others are found in the parent's."""
        digests = {tensor.name: chunk_digests(tensor.data) for tensor in state.tensors}
        records, packs = self._unchanged(state, digests)
        kept = {record.name for record in records}
        uploads = []
        for number, group in enumerate(plan_packs([t for t in state.tensors if t.name not in kept])):
            key = f"packs/{self._lease.attempt}/{state.step}-0-{number}-{nonce}.safetensors"
            pack = build_pack(key, group, index=len(packs), digests=digests)
            uploads.append(Upload(key, pack.parts))
            packs.append(pack.record)
            records.extend(pack.tensors)
        order = {tensor.name: place for place, tensor in enumerate(state.tensors)}
        return sorted(records, key=lambda record: order[record.name]), packs, uploads

    def _unchanged(
        self, state: HostState, digests: dict[str, list[str]]
    ) -> tuple[list[TensorRecord], list[PackRecord]]:
        if self._parent is None or not self._kept(self._parent.record):
            return [], []
        parent = self._parent.manifest
        before = {record.name: record for record in parent.tensors}
        packs: dict[int, int] = {}
        records = []
        for tensor in state.tensors:
            old = before.get(tensor.name)
            if old is None or not _same(old, tensor, digests[tensor.name]):
                continue
            slices = [
                msgspec.structs.replace(piece, pack=packs.setdefault(piece.pack, len(packs))) for piece in old.slices
            ]
            records.append(msgspec.structs.replace(old, slices=slices))
        return records, [parent.packs[index] for index in packs]

    def _kept(self, record: CheckpointRecord) -> bool:
        """Whether a checkpoint is not retired: the packs of one that is are deleted."""
        return any(kept.event.manifest == record.event.manifest for kept in self._journal.state.checkpoints)

    def _rank_record(
        self, state: HostState, nonce: str, tensors: list[TensorRecord], packs: list[PackRecord]
    ) -> tuple[Upload, RankRef]:
        record = RankRecord(FORMAT, state.step, self._lease.attempt, 0, 1, tensors, packs)
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

    def _manifest(
        self, state: HostState, nonce: str, tensors: list[TensorRecord], packs: list[PackRecord], ranks: list[RankRef]
    ) -> Manifest:
        return Manifest(
            format=FORMAT, run=self._journal.info.run, step=state.step, attempt=self._lease.attempt, nonce=nonce,
            created_at=round(self._clock.now(), 3), world_size=1,
            parent=self._parent.record.event.manifest if self._parent else "",
            state=state.tree, tensors=tensors, packs=packs, ranks=ranks, partial=state.partial,
        )  # fmt: skip


def _same(old: TensorRecord, new: HostTensor, digests: list[str]) -> bool:
    """Whether the parent holds the very same tensor, whole in one slice."""
    match old.slices:
        case [Slice(digests=known)]:
            return old.dtype == new.dtype and old.shape == list(new.shape) and known == digests
    return False
