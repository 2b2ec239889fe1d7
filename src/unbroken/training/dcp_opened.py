"""Choosing a checkpoint, and reading from it what a load planner of torch.distributed.checkpoint asks for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner, ReadItem

from unbroken.checkpoint import (
    Box,
    Manifest,
    Piece,
    TensorRecord,
    encode_tree,
    load_manifest,
    newest_first,
    read_pieces,
    read_tensors,
    restore_newest,
)
from unbroken.checkpoint.tree import tensor_names
from unbroken.errors import DamagedError, MismatchError, NotFoundError
from unbroken.journal import CheckpointRecord, Journal
from unbroken.store import Store, open_store
from unbroken.training.capture import dtype_name, rebuild
from unbroken.training.dcp_metadata import Contents, contents
from unbroken.training.dcp_values import as_planners_read_it
from unbroken.training.restore import bytes_of

_log = logging.getLogger("unbroken")

_SCRATCH = 256 << 20
"""Bytes that are read beside their destination at a time, where that is on a device or not contiguous."""


@dataclass(frozen=True)
class _Wanted:
    """A tensor into which a box of a stored one is to be read."""

    item: ReadItem
    record: TensorRecord
    box: Box
    target: torch.Tensor
    """The planner's."""
    memory: torch.Tensor
    """The same, or memory of its own where that cannot be read into."""

    @property
    def scratch(self) -> int:
        """Bytes beside the destination."""
        return 0 if self.memory is self.target else self.memory.numel() * self.memory.element_size()


@dataclass(frozen=True)
class Opened:
    """A checkpoint that was chosen."""

    store: Store
    record: CheckpointRecord
    older: int | None
    """The step of the one before."""
    contents: Contents

    def read(self, items: Iterable[ReadItem], planner: LoadPlanner) -> None:
        """Read what the items ask for, verified, and hand it to the planner.

        Raises:
            DamagedError: names tensor and pack, and in its hint the checkpoint before.
            MismatchError: the planner has memory of another shape.
        """
        items = list(items)
        try:
            for batch in _batches(self._wanted(item, planner) for item in items if item.type != LoadItemType.BYTE_IO):
                _read_batch(self, batch, planner)
            self._read_values([item for item in items if item.type == LoadItemType.BYTE_IO], planner)
        except DamagedError as error:
            raise self._with_way_out(error) from error

    def _wanted(self, item: ReadItem, planner: LoadPlanner) -> _Wanted:
        name, chunk = item.storage_index.fqn, item.storage_index.offset
        record = self.contents.tensors[name]
        offset = [0] * len(record.shape) if chunk is None else chunk
        box = Box(
            tuple(begin + more for begin, more in zip(offset, item.storage_offsets, strict=True)), tuple(item.lengths)
        )
        target = planner.resolve_tensor(item).detach()
        if tuple(target.shape) != box.shape:
            raise MismatchError(
                f"the planner wants {list(box.shape)} of {name}, and gave memory for {list(target.shape)}",
                kind="planner",
            )
        return _Wanted(item, record, box, target, target if _lies_ready(target, record) else _scratch(box, record))

    def _read_values(self, items: Iterable[ReadItem], planner: LoadPlanner) -> None:
        leaves = {item.storage_index.fqn: self.contents.leaves[item.storage_index.fqn].value for item in items}
        names = tensor_names([encode_tree(value) for value in leaves.values()])
        tensors = _whole_tensors(self.store, self.contents.manifest, names)
        for item in items:
            value = rebuild(leaves[item.storage_index.fqn], tensors)
            planner.load_bytes(item, as_planners_read_it(value))

    def _with_way_out(self, error: DamagedError) -> DamagedError:
        """The error with what can be done: torch gives no second try once ranks have planned."""
        if self.older is None:
            return error
        return DamagedError(
            error.message, kind=error.kind,
            hint=f"Load the checkpoint before it: unbroken.dcp.Reader(uri, step={self.older})",
        )  # fmt: skip


def _lies_ready(target: torch.Tensor, record: TensorRecord) -> bool:
    return (
        target.device.type == "cpu"
        and target.is_contiguous()
        and not (target.is_conj() or target.is_neg())
        and dtype_name(target) == record.dtype
    )


def _scratch(box: Box, record: TensorRecord) -> torch.Tensor:
    return torch.empty(box.shape, dtype=getattr(torch, record.dtype))


def _batches(wanted: Iterable[_Wanted]) -> Iterator[list[_Wanted]]:
    batch: list[_Wanted] = []
    room = _SCRATCH
    for each in wanted:
        if batch and each.scratch > room:
            yield batch
            batch, room = [], _SCRATCH
        batch.append(each)
        room -= each.scratch
    if batch:
        yield batch


def _read_batch(found: Opened, batch: list[_Wanted], planner: LoadPlanner) -> None:
    pieces = [Piece(each.record.name, each.box, bytes_of(each.memory)) for each in batch]
    read_pieces(found.store, found.contents.manifest, pieces)
    for each in batch:
        if each.memory is not each.target:
            each.target.copy_(each.memory)
        planner.commit_tensor(each.item, each.target)


def _whole_tensors(store: Store, manifest: Manifest, names: list[str]) -> dict[str, torch.Tensor]:
    asked = set(names)
    tensors = {
        record.name: _scratch(Box.whole(record.shape), record) for record in manifest.tensors if record.name in asked
    }
    read_tensors(store, manifest, names, allocate=lambda record: bytes_of(tensors[record.name]))
    return tensors


def open_checkpoint(uri: str, step: int | None) -> Opened:
    """Choose a checkpoint of a run: that of ``step``, or the newest that can be opened.

    Raises:
        NotFoundError: there is no run, or no such checkpoint.
        DamagedError: that of ``step`` cannot be opened, or none can.
        FormatError: a newer version wrote it.
    """
    journal = Journal.open(open_store(uri))
    record, manifest = _newest(journal) if step is None else _of_step(journal, step)
    older = next(
        (each.step for each in newest_first(journal.state) if each.n < record.n and each.step != record.step), None
    )
    return Opened(journal.store, record, older, contents(manifest))


def _newest(journal: Journal) -> tuple[CheckpointRecord, Manifest]:
    found = restore_newest(journal.store, journal.state, lambda *_: None, on_damaged=_say)
    if found is None:
        raise NotFoundError(f"{journal.store.uri} has no checkpoint yet", kind="checkpoint")
    return found[0], found[1]


def _of_step(journal: Journal, step: int) -> tuple[CheckpointRecord, Manifest]:
    for record in newest_first(journal.state):
        if record.step == step:
            return record, load_manifest(journal.store, record)
    raise NotFoundError(
        f"{journal.store.uri} has no checkpoint of step {step}", kind="checkpoint", hint="Reader.steps() lists them"
    )


def _say(record: CheckpointRecord, error: DamagedError) -> None:
    _log.warning("unbroken: the checkpoint of step %d is damaged and passed over: %s", record.step, error)
