"""The manifest: what a checkpoint consists of. The wire form is specified in docs/spec/checkpoint-v1.md."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from unbroken.checkpoint.dtypes import item_size
from unbroken.errors import NotFoundError

FORMAT = 1
"""The format that this version writes, and the newest that it reads."""


class PackRecord(msgspec.Struct, frozen=True):
    """One pack: an object that is a valid safetensors file."""

    key: str
    size: int
    """Bytes of the whole object."""
    header_size: int
    """Bytes before the tensor data: the 8-byte length and the JSON header."""
    header_digest: str
    """xxh3-128 of those bytes, in hex."""


class Slice(msgspec.Struct, frozen=True):
    """A box of a tensor, contiguous in row-major order in one pack."""

    offset: list[int]
    """Where the box begins in the tensor, an index for each dimension."""
    shape: list[int]
    pack: int
    """Index into the manifest's packs."""
    start: int
    """First byte in the pack's object."""
    length: int
    digests: list[str]
    """xxh3-128 in hex of each chunk of 16 MiB (the last may be shorter) of the slice's bytes."""


class TensorRecord(msgspec.Struct, frozen=True):
    """One tensor of the global state."""

    name: str
    dtype: str
    """torch's name without the prefix, such as ``float32``."""
    shape: list[int]
    slices: list[Slice]

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * item_size(self.dtype)


class RankRef(msgspec.Struct, frozen=True):
    """Names a rank record."""

    key: str
    sha256: str


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a run after one step."""

    format: int
    run: str
    step: int
    attempt: int
    nonce: str
    created_at: float
    world_size: int
    parent: str
    """Manifest key of the checkpoint that this one continues, or ""."""
    state: Any
    """The state as a tagged tree (:mod:`unbroken.checkpoint.tree`); tensors in it are names."""
    tensors: list[TensorRecord]
    packs: list[PackRecord]
    ranks: list[RankRef]
    """What each rank made durable, by rank: the parts of which ``tensors`` and ``packs`` are made up."""
    partial: bool = False
    """It was imported: objects of a program that it lacks keep their initial state."""

    @property
    def size(self) -> int:
        """Bytes of tensors in this checkpoint."""
        return sum(tensor.size for tensor in self.tensors)

    def tensor(self, name: str) -> TensorRecord:
        """The record of one tensor.

        Raises:
            NotFoundError: the checkpoint holds no tensor of that name.
        """
        for record in self.tensors:
            if record.name == name:
                return record
        raise NotFoundError(f"the checkpoint of step {self.step} holds no tensor {name!r}", kind="tensor")


class RankRecord(msgspec.Struct, frozen=True):
    """What one rank made durable for one step: its part of the manifest."""

    format: int
    step: int
    attempt: int
    rank: int
    world_size: int
    tensors: list[TensorRecord]
    """``pack`` of their slices indexes this record's packs."""
    packs: list[PackRecord]
