"""What in a manifest cannot be true. A digest shows that bytes are those that were written, not that they make
sense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from unbroken.checkpoint.digest import chunk_count
from unbroken.checkpoint.manifest import Manifest, PackRecord, Slice, TensorRecord
from unbroken.checkpoint.tree import tensor_names
from unbroken.errors import FormatError

PACK_FOLDER = "packs"
_LENGTH_FIELD = 8
"""Bytes of the length at the head of a safetensors file."""


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Everything that is wrong, in words, the gravest first.

    Raises:
        FormatError: something that a later version of the format may allow.
    """
    if manifest.step < 0 or manifest.attempt < 1 or manifest.world_size < 1:
        yield f"step {manifest.step}, attempt {manifest.attempt}, world size {manifest.world_size}"
    for pack in manifest.packs:
        yield from _in_pack(pack)
    for tensor in manifest.tensors:
        yield from _in_tensor(tensor, manifest.packs)
    yield from _in_names(manifest)


def _in_pack(pack: PackRecord) -> Iterator[str]:
    folder, *rest = pack.key.split("/")
    if folder != PACK_FOLDER or not rest or any(part in ("", ".", "..") for part in rest) or "\0" in pack.key:
        yield f"{pack.key!r} is no key of a pack"
    if not _LENGTH_FIELD <= pack.header_size <= pack.size:
        yield f"{pack.key} has {pack.size} bytes, and {pack.header_size} of them before its tensors"


def _in_tensor(tensor: TensorRecord, packs: list[PackRecord]) -> Iterator[str]:
    if any(length < 0 for length in tensor.shape):
        yield f"{tensor.name} has the shape {tensor.shape}"
        return
    whole = [0] * len(tensor.shape), tensor.shape
    if [(piece.offset, piece.shape) for piece in tensor.slices] != [whole]:
        raise FormatError(
            f"the tensor {tensor.name} is not stored whole, in one slice",
            kind="slices", hint="Install a newer unbroken",
        )  # fmt: skip
    yield from _in_slice(tensor, tensor.slices[0], packs)


def _in_slice(tensor: TensorRecord, piece: Slice, packs: list[PackRecord]) -> Iterator[str]:
    if piece.length != tensor.size:
        yield f"{tensor.name} has {tensor.size} bytes, and its slice {piece.length}"
    elif len(piece.digests) != chunk_count(piece.length):
        yield f"{tensor.name} has {piece.length} bytes and {len(piece.digests)} digests"
    if not 0 <= piece.pack < len(packs):
        yield f"{tensor.name} is in pack {piece.pack} of {len(packs)}"
        return
    pack = packs[piece.pack]
    if piece.start < pack.header_size or piece.start + piece.length > pack.size:
        yield f"{tensor.name} is at bytes {piece.start}-{piece.start + piece.length} of {pack.key}, outside its data"


def _in_names(manifest: Manifest) -> Iterator[str]:
    held = Counter(tensor.name for tensor in manifest.tensors)
    yield from (f"the tensor {name} is listed {count} times" for name, count in held.items() if count > 1)
    named = tensor_names(manifest.state)
    yield from (f"the state names the tensor {name}, which is in no pack" for name in named if name not in held)
