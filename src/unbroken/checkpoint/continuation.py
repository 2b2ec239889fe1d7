"""What a writer knows of the checkpoint that its next one continues: what need not be written again follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.manifest import Manifest
from unbroken.checkpoint.metrics import encode_metrics, metrics_between
from unbroken.checkpoint.packing import Packing
from unbroken.checkpoint.staged import HostState
from unbroken.checkpoint.uploads import Upload
from unbroken.journal import CheckpointRecord, Journal, Lease


@dataclass(frozen=True)
class Continuation:
    """The parent of the next checkpoint, as one rank of an attempt sees it. It never changes: a write keeps to one."""

    journal: Journal
    lease: Lease
    rank: int
    """Whose objects are to be named."""
    record: CheckpointRecord | None = None
    manifest: Manifest | None = None

    def go_on_from(self, record: CheckpointRecord, manifest: Manifest) -> Continuation:
        """The same with another parent."""
        return replace(self, record=record, manifest=manifest)

    @property
    def key(self) -> str:
        """Manifest key of the parent, or ""."""
        return self.record.event.manifest if self.record else ""

    def packing(self, state: HostState, nonce: str) -> Packing:
        """Packs for a state: what changed since the parent goes into new ones."""
        parent = self.manifest if self.record and self._kept(self.record) else None
        prefix = f"packs/{self.lease.attempt}/{state.step}-{self.rank}"
        # An empty part of a tensor that is not empty says nothing. An empty tensor must be somewhere.
        tensors = [tensor for tensor in state.tensors if len(tensor.data) or 0 in tensor.tensor_shape]
        return Packing(tensors, parent, lambda number: f"{prefix}-{number}-{nonce}.safetensors")

    def metrics(self, state: HostState, nonce: str) -> tuple[list[Upload], str]:
        """The object of the values logged since the parent, if there are any, and its digest."""
        after = self.record.step if self.record else -1
        metrics = metrics_between(state.metrics, after, state.step)
        if not metrics:
            return [], ""
        data = encode_metrics(metrics)
        key = f"metrics/{state.step:011d}-{self.lease.attempt}-{nonce}.json"
        return [Upload(key, [data])], sha256(data)

    def rank_key(self, state: HostState, nonce: str) -> str:
        """Key of the rank's record."""
        return f"ranks/{self.lease.attempt}/{state.step}/{self.rank}-{nonce}.json"

    def _kept(self, record: CheckpointRecord) -> bool:
        """Whether a checkpoint is not retired: the packs of one that is are deleted."""
        return any(kept.event.manifest == record.event.manifest for kept in self.journal.state.checkpoints)
