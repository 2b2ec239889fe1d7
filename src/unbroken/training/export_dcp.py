"""Exporting a checkpoint to a folder that ``torch.distributed.checkpoint.load`` reads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

from unbroken.checkpoint import Manifest, decode_tree, read_tensors
from unbroken.checkpoint.destination import demand_free, new_folder
from unbroken.checkpoint.export import Exported
from unbroken.checkpoint.selection import demand_objects
from unbroken.checkpoint.streaming import TensorStream
from unbroken.checkpoint.tree import Tagged, TensorRef, tensor_names
from unbroken.errors import UnbrokenError
from unbroken.store import Store
from unbroken.training.capture import rebuild


def export_dcp(
    store: Store, manifest: Manifest, objects: Sequence[str], target: Path, *, force: bool = False
) -> Exported:
    """Write objects of a checkpoint as ``torch.distributed.checkpoint`` does, every byte verified.

    The folder holds ``{name: state}`` of the objects: ``dcp.load({"model": model.state_dict()}, checkpoint_id=folder)``
    reads it. Values that are no tensors are pickles there: that is the format. Tensors that several
    ranks wrote are whole there; of what belongs to each rank alone it is rank 0's.

    Raises:
        NotFoundError: the checkpoint holds no object of such a name.
        ConfigError: the target is in use.
        DamagedError: bytes of the checkpoint disagree with their digests; nothing is left at the target.
        StoreError: the store, or the target's file system, failed.
    """
    demand_free(target, force=force, folder=True)
    demand_objects(manifest, objects)
    state = manifest.state_of(0)
    tree = {name: state[name] for name in objects}
    tensors = _placeholders(store, manifest, tree)
    planner = _StreamingPlanner(store, manifest, tensors)
    with new_folder(target, force=force) as folder:
        _save(rebuild(decode_tree(tree), tensors), folder, planner)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return Exported(sum(1 for _ in target.iterdir()), len(tensors), size, 0)


def _placeholders(store: Store, manifest: Manifest, tree: Any) -> dict[str, torch.Tensor]:
    """The tensors that a tree names: without memory, but for those in values that torch pickles whole."""
    records = {record.name: record for record in manifest.tensors}
    read = read_tensors(store, manifest, _pickled(decode_tree(tree)))
    return {
        name: _tensor(read[name], records[name].dtype, records[name].shape)
        if name in read
        else torch.empty(records[name].shape, dtype=getattr(torch, records[name].dtype), device="meta")
        for name in tensor_names(tree)
    }


def _pickled(value: Any, *, whole: bool = False) -> list[str]:
    """Names of the tensors in tuples, and of NumPy's: these are no tensors of their own to torch."""
    match value:
        case TensorRef(name=name):
            return [name] if whole else []
        case Tagged(tag="ndarray", value=str(name)):
            return [name]
        case dict():
            return [name for item in value.values() for name in _pickled(item, whole=whole)]
        case list() | tuple():
            within = whole or isinstance(value, tuple)
            return [name for item in value for name in _pickled(item, whole=within)]
    return []


def _tensor(data: memoryview, dtype: str, shape: list[int]) -> torch.Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    if not len(data):
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(data, dtype=kind).view(shape)


class _StreamingPlanner(DefaultSavePlanner):
    """Plans with tensors that have no memory, and reads each when the writer asks for it."""

    def __init__(self, store: Store, manifest: Manifest, placeholders: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._store = store
        self._manifest = manifest
        self._names = {id(tensor): name for name, tensor in placeholders.items()}
        self._stream = TensorStream(store, manifest, [])
        self._given: torch.Tensor | None = None

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        plan = super().finish_plan(new_plan)
        order = [self._name(item) for item in plan.items if item.type != WriteItemType.BYTE_IO]
        self._stream = TensorStream(self._store, self._manifest, order)
        return plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.type == WriteItemType.BYTE_IO:
            return super().resolve_data(write_item)
        if self._given is not None:
            # The writer has written it, and keeps the object until the end of the file: take its memory away.
            self._given.untyped_storage().resize_(0)
        placeholder = self.lookup_object(write_item.index)
        self._given = torch.empty(placeholder.shape, dtype=placeholder.dtype)
        data = self._stream.take(self._name(write_item))
        if len(data):
            self._given.copy_(_tensor(data, str(placeholder.dtype).removeprefix("torch."), list(placeholder.shape)))
        return self._given

    def _name(self, item: WriteItem) -> str:
        return self._names[id(self.lookup_object(item.index))]


def _save(state: dict[str, Any], folder: Path, planner: _StreamingPlanner) -> None:
    # One thread: with several, an error in one of them can be lost. No copies ahead: they would hold what was written.
    writer = FileSystemWriter(folder, single_file_per_rank=True, thread_count=1, per_thread_copy_ahead=0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it saves in a single process, as it should
            save(state, storage_writer=writer, planner=planner, no_dist=True)
    except CheckpointException as error:
        raise _cause(error) from error


def _cause(error: CheckpointException) -> BaseException:
    """What went wrong, without torch's wrapping."""
    for failure in error.failures.values():
        cause: BaseException | None = failure[0]
        while cause is not None:
            if isinstance(cause, UnbrokenError | OSError):
                return cause
            cause = cause.__cause__ or cause.__context__
    return error
