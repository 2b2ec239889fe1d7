"""``unbroken.dcp.Reader``: what ``dcp.load`` reads a run's checkpoints from."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from unbroken.checkpoint import (
    Box,
    Manifest,
    Piece,
    TensorRecord,
    load_manifest,
    newest_first,
    read_pieces,
    read_tensors,
    restore_newest,
)
from unbroken.checkpoint.tree import encode_tree, tensor_names
from unbroken.errors import ConfigError, DamagedError, MismatchError, NotFoundError, UnbrokenError
from unbroken.journal import CheckpointRecord, Journal
from unbroken.store import Store, open_store, parse_uri
from unbroken.training.capture import dtype_name, rebuild
from unbroken.training.dcp_metadata import Contents, Unreadable, contents
from unbroken.training.dcp_step import step_of
from unbroken.training.dcp_values import as_planners_read_it
from unbroken.training.restore import bytes_of

_log = logging.getLogger("unbroken")

_SCRATCH = 256 << 20
"""Bytes that are read beside their destination at a time, where that is on a device or not contiguous."""


class Reader(StorageReader):
    """A ``StorageReader`` of ``torch.distributed.checkpoint`` over a run's store.

    ``dcp.load(state, storage_reader=Reader(uri))`` loads the newest checkpoint that can be opened, whoever wrote it;
    each rank reads the chunks that it needs, and every byte is checked before it is used.

    An error of any rank reaches all of them as torch's ``CheckpointException``, whose ``failures`` has the error itself
    by rank: ``NotFoundError`` (no run, no checkpoint), ``DamagedError`` (then tensors may have been changed),
    ``MismatchError``, ``StoreError``.

    Args:
        uri: of the run, as of :class:`unbroken.Run`.
        step: which checkpoint; the newest by default. ``checkpoint_id="step-100"`` outranks it.

    Raises:
        ConfigError: the URI cannot be used.
    """

    def __init__(self, uri: str, step: int | None = None) -> None:
        super().__init__()
        self.uri = str(parse_uri(uri))
        self._given = step
        self._id: str | os.PathLike[str] | None = None
        self._opened: _Opened | None = None
        self._error: UnbrokenError | None = None

    def steps(self) -> list[int]:
        """The steps that :class:`Reader` can load, oldest commit first; none of a run that does not exist."""
        try:
            journal = Journal.open(open_store(self.uri))
        except NotFoundError:
            return []
        return [record.step for record in journal.state.checkpoints]

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Called before each load that names an id."""
        self._id = checkpoint_id

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether the id ends with a step."""
        try:
            return step_of(checkpoint_id) is not None
        except ConfigError:
            return False

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Choose a checkpoint and say what it holds.

        What goes wrong is raised when something is looked up in the answer, or by :meth:`set_up_storage_reader`.
        """
        self._opened = self._error = None
        try:
            step = step_of(self._id)
            self._opened = _open(self.uri, self._given if step is None else step)
        except UnbrokenError as error:
            self._error = error
            return Metadata(Unreadable(error))
        return self._opened.contents.metadata()

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:  # noqa: ARG002
        """Called on each rank as a load begins.

        Raises:
            UnbrokenError: the checkpoint could not be opened.
        """
        if self._error is not None:
            raise self._error

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Say in the plan which checkpoint this rank is about to read."""
        plan.storage_data = self._found.record.event.manifest
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """On the coordinator: refuse a load of two checkpoints at once.

        Raises:
            MismatchError: ranks have chosen differently, because one was committed meanwhile.
        """
        chosen = {str(plan.storage_data): rank for rank, plan in enumerate(plans)}
        if len(chosen) > 1:
            (first, one), (second, other) = list(chosen.items())[:2]
            raise MismatchError(
                f"rank {one} found {first} to be the newest checkpoint, and rank {other} {second}", kind="newest",
                hint="Load again, or name the step",
            )  # fmt: skip
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan asks of this rank, verified.

        Raises:
            DamagedError: names tensor and pack, and in its hint the checkpoint before.
        """
        found = self._found
        try:
            for batch in _batches(found.wanted(plan.items, planner)):
                _read_batch(found, batch, planner)
            found.load_values([item for item in plan.items if item.type == LoadItemType.BYTE_IO], planner)
        except DamagedError as error:
            raise found.with_way_out(error) from error
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @property
    def _found(self) -> _Opened:
        if self._opened is None:
            raise ConfigError("no checkpoint was chosen: read_metadata comes first", kind="order")
        return self._opened


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
class _Opened:
    """A checkpoint that was chosen."""

    store: Store
    record: CheckpointRecord
    older: int | None
    """The step of the one before."""
    contents: Contents

    def wanted(self, items: Iterable[ReadItem], planner: LoadPlanner) -> Iterator[_Wanted]:
        for item in items:
            if item.type != LoadItemType.BYTE_IO:
                yield self._wanted_tensor(item, planner)

    def _wanted_tensor(self, item: ReadItem, planner: LoadPlanner) -> _Wanted:
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

    def load_values(self, items: Iterable[ReadItem], planner: LoadPlanner) -> None:
        """Hand out what is no tensor."""
        leaves = {item.storage_index.fqn: self.contents.leaves[item.storage_index.fqn].value for item in items}
        names = tensor_names([encode_tree(value) for value in leaves.values()])
        tensors = _whole_tensors(self.store, self.contents.manifest, names)
        for item in items:
            value = rebuild(leaves[item.storage_index.fqn], tensors)
            planner.load_bytes(item, as_planners_read_it(value))

    def with_way_out(self, error: DamagedError) -> DamagedError:
        """The error with what can be done: DCP gives no second try once ranks have planned."""
        if self.older is None:
            return error
        return DamagedError(
            error.message, kind=error.kind,
            hint=f"Load the checkpoint before it: unbroken.dcp.Reader(uri, step={self.older})",
        )  # fmt: skip


def _open(uri: str, step: int | None) -> _Opened:
    journal = Journal.open(open_store(uri))
    record, manifest = _newest(journal) if step is None else _of_step(journal, step)
    older = next((each.step for each in newest_first(journal.state) if each.n < record.n and each.step != step), None)
    return _Opened(journal.store, record, older, contents(manifest))


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


def _read_batch(found: _Opened, batch: list[_Wanted], planner: LoadPlanner) -> None:
    pieces = [Piece(each.record.name, each.box, bytes_of(each.memory)) for each in batch]
    read_pieces(found.store, found.contents.manifest, pieces)
    for each in batch:
        if each.memory is not each.target:
            each.target.copy_(each.memory)
        planner.commit_tensor(each.item, each.target)


def _whole_tensors(store: Store, manifest: Manifest, names: list[str]) -> dict[str, torch.Tensor]:
    wanted = {record.name: record for record in manifest.tensors if record.name in set(names)}
    tensors = {name: _scratch(Box.whole(record.shape), record) for name, record in wanted.items()}
    read_tensors(store, manifest, names, allocate=lambda record: bytes_of(tensors[record.name]))
    return tensors
