"""What in a manifest, or in a rank record, cannot be true. A digest shows that bytes are those that were written, not
that they make sense."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from unbroken.checkpoint.coverage import find_flaw
from unbroken.checkpoint.digest import chunk_count
from unbroken.checkpoint.dtypes import item_size
from unbroken.checkpoint.manifest import SHARDED_FORMAT, Manifest, PackRecord, RankRef, Slice, TensorRecord
from unbroken.checkpoint.tree import tensor_names
from unbroken.errors import FormatError

PACK_FOLDER = "packs"
RANK_FOLDER = "ranks"
_LENGTH_FIELD = 8
"""Bytes of the length at the head of a safetensors file."""


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Everything that is wrong, in words, the gravest first.

    Of format 2 this looks at what the parts make together; each of them was held to :func:`in_parts` before.

    Raises:
        FormatError: something that a later version of the format may allow.
    """
    yield from in_head(manifest)
    if manifest.format < SHARDED_FORMAT:
        for tensor in manifest.tensors:
            if min(tensor.shape, default=0) >= 0:
                _demand_whole(tensor)
        yield from in_parts(manifest.tensors, manifest.packs)
    else:
        for tensor in manifest.tensors:
            if (flaw := find_flaw(tensor)) is not None:
                yield f"{tensor.name} of shape {tensor.shape}: {flaw.text}"
        if not all(isinstance(tree, dict) for tree in manifest.locals):
            yield "a state that is no dictionary"
    yield from _in_names(manifest)


def in_head(manifest: Manifest) -> Iterator[str]:
    """What is wrong with that of a manifest which is no part of any one rank's."""
    if manifest.step < 0 or manifest.attempt < 1 or manifest.world_size < 1:
        yield f"step {manifest.step}, attempt {manifest.attempt}, world size {manifest.world_size}"
    if manifest.format >= SHARDED_FORMAT and not isinstance(manifest.state, dict):
        yield "a state that is no dictionary"
    yield from in_refs(manifest.ranks)


def in_refs(ranks: Sequence[RankRef]) -> Iterator[str]:
    """What is wrong with the names of rank records."""
    yield from (f"{ref.key!r} is no key of a rank record" for ref in ranks if not _is_key(ref.key, RANK_FOLDER))


def in_parts(tensors: Sequence[TensorRecord], packs: Sequence[PackRecord]) -> Iterator[str]:
    """What is wrong with tensors as one record lists them, each slice by itself, and with the packs in which they lie.

    Raises:
        FormatError: an element type that a later version of the format may know.
    """
    for pack in packs:
        yield from _in_pack(pack)
    for tensor in tensors:
        if any(length < 0 for length in tensor.shape):
            yield f"{tensor.name} has the shape {tensor.shape}"
            continue
        size = item_size(tensor.dtype)
        for piece in tensor.slices:
            if not _is_sound(piece, size, packs):
                yield from _in_slice(tensor, piece, packs)


def _is_key(key: str, folder: str) -> bool:
    """Whether a key leads into a folder of the run: pruning deletes what is listed."""
    first, *rest = key.split("/")
    return first == folder and bool(rest) and not any(part in ("", ".", "..") for part in rest) and "\0" not in key


def _in_pack(pack: PackRecord) -> Iterator[str]:
    if not _is_key(pack.key, PACK_FOLDER):
        yield f"{pack.key!r} is no key of a pack"
    if not _LENGTH_FIELD <= pack.header_size <= pack.size:
        yield f"{pack.key} has {pack.size} bytes, and {pack.header_size} of them before its tensors"


def _demand_whole(tensor: TensorRecord) -> None:
    whole = [0] * len(tensor.shape), tensor.shape
    if [(piece.offset, piece.shape) for piece in tensor.slices] != [whole]:
        raise FormatError(
            f"the tensor {tensor.name} is not stored whole, in one slice",
            kind="slices", hint="Install a newer unbroken",
        )  # fmt: skip


def _is_sound(piece: Slice, item: int, packs: Sequence[PackRecord]) -> bool:
    """Whether :func:`_in_slice` finds nothing: there may be a million slices."""
    length = piece.length
    if length != math.prod(piece.shape) * item or len(piece.digests) != chunk_count(length):
        return False
    if not 0 <= piece.pack < len(packs):
        return False
    pack = packs[piece.pack]
    return pack.header_size <= piece.start <= pack.size - length


def _in_slice(tensor: TensorRecord, piece: Slice, packs: Sequence[PackRecord]) -> Iterator[str]:
    size = math.prod(piece.shape) * item_size(tensor.dtype)
    if piece.length != size:
        yield f"{tensor.name} has {size} bytes at {piece.offset}, and its slice {piece.length}"
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
    named = tensor_names([manifest.state, *manifest.locals])
    yield from (f"the state names the tensor {name}, which is in no pack" for name in named if name not in held)
