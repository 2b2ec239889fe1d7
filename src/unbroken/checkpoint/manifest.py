"""The manifest: what a checkpoint consists of. The wire form is specified in docs/spec/checkpoint-v1.md."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from unbroken.checkpoint.dtypes import item_size
from unbroken.errors import NotFoundError

FORMAT = 2
"""The newest format that this version reads."""
WHOLE_FORMAT = 1
"""What is written for one rank: each tensor whole, in the manifest."""
SHARDED_FORMAT = 2
"""What is written for several ranks: slices and packs stand in the rank records that the manifest names."""

# There may be a million slices, and none of these can be part of a cycle: gc=False leaves them out of collections.


class PackRecord(msgspec.Struct, frozen=True, gc=False):
    """One pack: an object that is a valid safetensors file."""

    key: str
    size: int
    """Bytes of the whole object."""
    header_size: int
    """Bytes before the tensor data: the 8-byte length and the JSON header."""
    header_digest: str
    """xxh3-128 of those bytes, in hex."""


class Slice(msgspec.Struct, frozen=True, gc=False):
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


class TensorRecord(msgspec.Struct, frozen=True, gc=False):
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
    """The state of a run after one step.

    In format 2 ``tensors`` and ``packs`` of the object in the store are empty;
    :func:`~unbroken.checkpoint.load_manifest` puts them together from the rank records, so that a manifest in memory is
    the same for one rank and for many.
    """

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
    locals: list[Any] = []
    """Of format 2, by rank, in memory only: the tree of what belongs to that rank alone (its generators, its part of
    the data order). None for ranks whose records were not read (:func:`~unbroken.checkpoint.load_manifest_part`)."""

    def state_of(self, rank: int) -> Any:
        """The state tree as ``rank`` would load it: what all share, and what is its own.

        Raises:
            IndexError: the checkpoint was written by fewer ranks; those of format 1 by one.
        """
        if self.format < SHARDED_FORMAT:
            if rank:
                raise IndexError(f"rank {rank} of 1")
            return self.state
        return {**self.state, **self.locals[rank]}

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


class RankRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one rank made durable for one step: its part of the manifest. The fields after ``packs`` are of format 2."""

    format: int
    step: int
    attempt: int
    rank: int
    world_size: int
    tensors: list[TensorRecord]
    """``pack`` of their slices indexes this record's packs."""
    packs: list[PackRecord]
    nonce: str = ""
    """As in the record's key."""
    shared: dict[str, str] = {}
    """SHA-256 of each object that all ranks have alike, as this rank has it: its tree, without the bytes of tensors.
    Ranks that disagree have no common state."""
    local: Any = {}
    """The tree of what is this rank's own; its tensors are named ``rank<r>/...``."""
    state: Any = None
    """Rank 0: the tree of what all share."""
    parent: str = ""
    """Rank 0: manifest key of the checkpoint that this one continues, or ""."""
    metrics: str = ""
    metrics_sha256: str = ""
    """Rank 0: names the object of the logged values, where there are any."""
    partial: bool = False
    written: int = 0
    """Bytes of packs and logged values that this rank wrote."""
    stall: float = 0.0
    """Seconds for which this rank's loop stood still."""
    seconds: float = 0.0
    """Seconds from the step boundary until all but this record was durable."""
    created_at: float = 0.0
    """The writer's clock, seconds since the epoch."""
    refers_to: str = ""
    """Manifest key of the checkpoint in whose packs unchanged slices lie; "" where there are none. While it is not
    retired, they stay."""
