"""The manifest: what a checkpoint consists of. The wire form is specified in docs/spec/checkpoint-v1.md."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import msgspec

from unbroken.checkpoint.dtypes import item_size
from unbroken.errors import DamagedError, FormatError, NotFoundError
from unbroken.journal import CheckpointRecord
from unbroken.store import Store

FORMAT = 1


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


class Manifest(msgspec.Struct, frozen=True):
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


_DECODER = msgspec.json.Decoder(Manifest)


class _Version(msgspec.Struct):
    format: int


def sha256(data: bytes) -> str:
    """SHA-256 in hex, as the journal names it."""
    return hashlib.sha256(data).hexdigest()


def load_manifest(store: Store, record: CheckpointRecord) -> Manifest:
    """Read the manifest that a journal entry committed.

    Raises:
        DamagedError: it is not there, or its bytes are not those that were committed.
        FormatError: a newer version wrote it.
    """
    key = record.event.manifest
    try:
        data = store.get(key)
    except NotFoundError as error:
        raise DamagedError(
            f"{key} is missing, though the journal of {store.uri} committed it", kind="missing"
        ) from error
    if sha256(data) != record.event.sha256:
        raise DamagedError(f"{key} in {store.uri} is not what was committed (SHA-256 differs)", kind="manifest")
    return decode_manifest(data, key)


def decode_manifest(data: bytes, key: str) -> Manifest:
    """Read manifest bytes that were verified.

    Raises:
        FormatError: a newer version wrote it.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version > FORMAT:
            raise FormatError(
                f"{key} has format {version}, and this version reads up to {FORMAT}",
                kind="newer-format", hint="Install a newer unbroken",
            )  # fmt: skip
        return _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise FormatError(f"{key} is no manifest that this version can read ({error})", kind="manifest") from error
