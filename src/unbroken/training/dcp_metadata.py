"""What a checkpoint says to torch.distributed.checkpoint of its contents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from unbroken.checkpoint import Manifest, TensorRecord, TensorRef, decode_tree
from unbroken.training.dcp_tree import Leaf, flattened


@dataclass(frozen=True)
class Contents:
    """A checkpoint as DCP sees it: its leaves and tensors by torch's names."""

    manifest: Manifest
    leaves: dict[str, Leaf]
    tensors: dict[str, TensorRecord]
    """Those leaves that are tensors, and where they are stored."""

    def metadata(self) -> Metadata:
        """For a load planner."""
        entries: dict[str, STORAGE_TYPES] = {
            name: _tensor_metadata(self.tensors[name]) if name in self.tensors else BytesStorageMetadata()
            for name in self.leaves
        }
        return Metadata(entries, planner_data={name: leaf.path for name, leaf in self.leaves.items()})


def contents(manifest: Manifest) -> Contents:
    """Name what a checkpoint holds. Of what belongs to each rank alone it is rank 0's.

    Raises:
        FormatError: a newer version wrote the state.
    """
    records = {record.name: record for record in manifest.tensors}
    leaves = {leaf.name: leaf for leaf in flattened(decode_tree(manifest.state_of(0)))}
    tensors = {name: records[leaf.value.name] for name, leaf in leaves.items() if isinstance(leaf.value, TensorRef)}
    return Contents(manifest, leaves, tensors)


def _tensor_metadata(record: TensorRecord) -> TensorStorageMetadata:
    return TensorStorageMetadata(
        TensorProperties(dtype=getattr(torch, record.dtype)),
        torch.Size(record.shape),
        [ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape)) for piece in record.slices],
    )


class Unreadable(dict[str, STORAGE_TYPES]):
    """In the place of the names of a checkpoint that could not be opened: whoever looks gets the error.

    ``dcp.load`` makes an AssertionError of whatever ``read_metadata`` raises; so it must return something.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def _refuse(self, *_: Any) -> NoReturn:
        raise self._error

    def __iter__(self) -> Iterator[str]:
        self._refuse()

    __getitem__ = __contains__ = __len__ = get = keys = values = items = __eq__ = _refuse
