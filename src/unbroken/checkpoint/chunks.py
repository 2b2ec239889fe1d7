"""The byte ranges that have a digest each, and reading them with few requests.

A chunk costs a request, and most tensors of an optimizer are small: neighbours in a pack are read together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from unbroken.checkpoint.digest import CHUNK
from unbroken.checkpoint.manifest import Manifest, PackRecord, Slice, TensorRecord

READERS = 12
"""Requests under way at once: a far store gives each connection some 90 MB/s, and each holds up to 16 MiB."""
_NAMED = 5
"""How many tensors an error names before it only counts."""


@dataclass(frozen=True)
class Chunk:
    """A range of a pack that has a digest."""

    holds: str
    """Name of the tensor, or ``the header``."""
    place: int
    """First byte within the slice."""
    key: str
    """The pack's."""
    start: int
    """First byte within the pack."""
    length: int
    digest: str
    offset: tuple[int, ...] = ()
    """Where its slice begins in the tensor."""


AnyChunk = TypeVar("AnyChunk", bound=Chunk)


def tensor_chunks(manifest: Manifest, tensor: TensorRecord) -> Iterator[Chunk]:
    """The chunks of a tensor, slice by slice, in order."""
    for piece in tensor.slices:
        yield from slice_chunks(manifest, tensor.name, piece, 0, piece.length)


def slice_chunks(manifest: Manifest, name: str, piece: Slice, start: int, end: int) -> Iterator[Chunk]:
    """The chunks of a slice of the tensor ``name`` that hold any of its bytes from ``start`` to before ``end``."""
    key, offset = manifest.packs[piece.pack].key, tuple(piece.offset)
    for number in range(start // CHUNK, -(-end // CHUNK)):
        at = number * CHUNK
        length = min(CHUNK, piece.length - at)
        yield Chunk(name, at, key, piece.start + at, length, piece.digests[number], offset)


def header_chunk(pack: PackRecord) -> Chunk:
    """The bytes of a pack before its tensors."""
    return Chunk("the header", 0, pack.key, 0, pack.header_size, pack.header_digest)


def batches(chunks: Iterable[AnyChunk]) -> Iterator[list[AnyChunk]]:
    """Chunks that lie side by side in one pack, together at most as long as the longest chunk may be."""
    batch: list[AnyChunk] = []
    for chunk in sorted(chunks, key=lambda chunk: (chunk.key, chunk.start)):
        if batch and not (
            chunk.key == batch[-1].key
            and chunk.start == batch[-1].start + batch[-1].length
            and chunk.start + chunk.length - batch[0].start <= CHUNK
        ):
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


def batch_range(batch: Sequence[Chunk]) -> tuple[str, int, int]:
    """(key, start, length) of what a batch covers."""
    first, last = batch[0], batch[-1]
    return first.key, first.start, last.start + last.length - first.start


def named(chunks: Iterable[Chunk]) -> str:
    """The tensors of some chunks, for people."""
    names = list(dict.fromkeys(chunk.holds for chunk in chunks))
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
