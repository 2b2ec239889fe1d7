"""Packs: which tensors go into which object, and the safetensors header before them.

A pack is a valid safetensors file (8-byte little-endian header length, JSON header, tensor bytes without gaps), so
that any tool can open one. It never changes, and its key is unique to one write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unbroken.checkpoint.digest import CHUNK, chunk_digests, digest
from unbroken.checkpoint.dtypes import item_size, safetensors_name
from unbroken.checkpoint.manifest import PackRecord, Slice, TensorRecord
from unbroken.checkpoint.safetensors import ALIGNMENT, METADATA, HeaderEntry, encode_header

PACK_SIZE = 256 << 20
"""Bytes of tensors at which a pack is full; a larger tensor has a pack of its own."""
_PAGE = 4096
RESERVED_NAME = METADATA
"""Means something else in a safetensors header."""


@dataclass(frozen=True)
class HostTensor:
    """One tensor in host memory, ready to be written: whole, or the box of it that this rank has.

    ``data`` is its bytes in row-major order, 1-D, little-endian as torch holds them; it must not change while a write
    is under way.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Of what ``data`` holds."""
    data: memoryview
    offset: tuple[int, ...] = ()
    """Where the box begins in the tensor, an index for each dimension; () for a whole tensor."""
    whole: tuple[int, ...] | None = None
    """Shape of the tensor of which this is a box; None for a whole tensor."""

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of the tensor itself."""
        return self.shape if self.whole is None else self.whole

    @property
    def place(self) -> tuple[int, ...]:
        """Where in the tensor ``data`` begins, an index for each dimension."""
        return self.offset if self.whole is not None else (0,) * len(self.shape)


@dataclass(frozen=True)
class Pack:
    """The content of one pack: header and data in order, and what the manifest says of it."""

    record: PackRecord
    parts: list[bytes | memoryview]
    tensors: list[TensorRecord]


def plan_packs(tensors: Iterable[HostTensor], *, pack_size: int = PACK_SIZE) -> Iterator[list[HostTensor]]:
    """Deal tensors out over packs of about ``pack_size`` bytes; each pack is given out as soon as it is full.

    Within a pack come first those that fill whole pages: after a header that does they can be written to a disk from
    where they lie. Then wide element types, so that every tensor begins at a multiple of its element's size. Of
    these the small ones come last: a rank that needs them all (the step counts of an optimizer) gets them at once.
    """
    pack: list[HostTensor] = []
    room = 0
    for tensor in tensors:
        if pack and len(tensor.data) > max(room, 0):
            yield sorted(pack, key=_place)
            pack = []
        if not pack:
            room = pack_size
        pack.append(tensor)
        room -= len(tensor.data)
    if pack:
        yield sorted(pack, key=_place)


def _place(tensor: HostTensor) -> tuple[bool, int, int]:
    broken = len(tensor.data) % _PAGE != 0
    return broken, -item_size(tensor.dtype), -len(tensor.data) if broken else 0


def build_pack(
    key: str, tensors: Sequence[HostTensor], *, index: int, digests: Mapping[str, list[str]] | None = None
) -> Pack:
    """Lay out one pack.

    Args:
        key: where it will be stored.
        tensors: in the order in which they are stored.
        index: the pack's place in the record that will list it.
        digests: the list of each tensor's digests by name, where the caller fills them; records hold these very lists.
    """
    header = _header(tensors)
    records: list[TensorRecord] = []
    parts: list[bytes | memoryview] = [header, *(tensor.data for tensor in tensors)]
    start = len(header)
    for tensor in tensors:
        known = (digests or {}).get(tensor.name)
        piece = Slice(
            offset=list(tensor.place), shape=list(tensor.shape), pack=index, start=start,
            length=len(tensor.data), digests=chunk_digests(tensor.data) if known is None else known,
        )  # fmt: skip
        records.append(TensorRecord(tensor.name, tensor.dtype, list(tensor.tensor_shape), [piece]))
        start += len(tensor.data)
    return Pack(PackRecord(key, start, len(header), digest(header)), parts, records)


def _header(tensors: Sequence[HostTensor]) -> bytes:
    entries = [
        HeaderEntry(tensor.name, name, list(tensor.shape), len(tensor.data))
        if (name := safetensors_name(tensor.dtype))
        else HeaderEntry(tensor.name, "U8", [len(tensor.data)], len(tensor.data))
        for tensor in tensors
    ]
    large = sum(entry.length for entry in entries) >= CHUNK
    return encode_header(entries, multiple_of=_PAGE if large else ALIGNMENT)
