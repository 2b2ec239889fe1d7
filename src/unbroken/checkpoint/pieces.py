"""The boxes of tensors that a reader asks for, and which chunks of the checkpoint go where for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from unbroken.checkpoint.boxes import Box, Way, way_between
from unbroken.checkpoint.chunks import Chunk, slice_chunks
from unbroken.checkpoint.dtypes import item_size
from unbroken.checkpoint.manifest import Manifest, Slice, TensorRecord
from unbroken.errors import DamagedError


class Sink(Protocol):
    """Memory that no view reaches, such as a device's."""

    size: int
    """Bytes."""

    def put(self, way: Way, data: memoryview) -> None:
        """Copy the bytes of ``data`` that the way begins at to where it leads. Called from several threads."""


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, and where its bytes are wanted."""

    name: str
    box: Box
    memory: memoryview | Sink
    """1-D, writable, of bytes: exactly those of the box, in row-major order."""


_Copy: TypeAlias = tuple[Way, memoryview | Sink]
"""A way, and the memory to which it leads."""


@dataclass(frozen=True, eq=False)
class WantedChunk(Chunk):
    """A chunk of which some bytes are wanted, or all."""

    slice_length: int = 0
    """Bytes of its slice."""
    straight: memoryview | None = None
    """Where it is wanted whole and in order: it is read to there, without memory of its own."""
    copies: tuple[_Copy, ...] = ()
    """Where else its bytes are wanted."""

    def room(self) -> memoryview:
        """Writable memory for the chunk: its destination, or memory of its own."""
        return memoryview(bytearray(self.length)) if self.straight is None else self.straight

    def spread(self, data: memoryview) -> None:
        """Copy the bytes of the chunk, verified before, to wherever it is wanted beside ``straight``."""
        for way, memory in self.copies:
            if isinstance(memory, memoryview):
                way.copy(data, memory)
            else:
                memory.put(way, data)


def wanted_chunks(manifest: Manifest, pieces: Sequence[Piece]) -> list[WantedChunk]:
    """Every chunk that holds a byte of the pieces, once.

    Raises:
        DamagedError: the manifest's slices do not cover a piece.
        NotFoundError: the checkpoint holds no tensor of a piece's name.
        ValueError: a piece lies outside its tensor, or its memory is of another size.
    """
    by_name: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_name[piece.name].append(piece)
    records = {record.name: record for record in manifest.tensors} if len(by_name) > 1 else {}
    found: list[WantedChunk] = []
    for name, of_tensor in by_name.items():
        record = records.get(name) or manifest.tensor(name)
        for piece in of_tensor:
            _check(record, piece)
        found.extend(_of_tensor(manifest, record, of_tensor))
    return found


def _check(record: TensorRecord, piece: Piece) -> None:
    if not Box.whole(record.shape).holds(piece.box):
        raise ValueError(
            f"{record.name} has the shape {record.shape}, and was asked for {list(piece.box.shape)} "
            f"from {list(piece.box.offset)}"
        )
    size = piece.box.size * item_size(record.dtype)
    memory = piece.memory
    held, readonly = (len(memory), memory.readonly) if isinstance(memory, memoryview) else (memory.size, False)
    if held != size or readonly:
        what = "may not be written" if readonly else f"holds {held}"
        raise ValueError(f"the piece of {record.name} has {size} bytes, and its memory {what}")


def _of_tensor(manifest: Manifest, record: TensorRecord, pieces: Sequence[Piece]) -> Iterator[WantedChunk]:
    missing = [piece.box.size for piece in pieces]
    item = item_size(record.dtype)
    for stored in record.slices:
        copies: list[_Copy] = []
        for number, piece in enumerate(pieces):
            part = _common(stored, piece.box)
            if part is not None:
                missing[number] -= part.size
                there = Box(tuple(stored.offset), tuple(stored.shape))
                copies.append((way_between(part, there, piece.box, item), piece.memory))
        if copies:
            yield from _of_slice(manifest, record.name, stored, copies)
    if any(missing):
        # Where slices overlap it is negative. Memory that nothing was read to must never be taken for a tensor.
        raise DamagedError(f"the slices of {record.name} do not make up the tensor", kind="manifest")


def _common(stored: Slice, box: Box) -> Box | None:
    """What a slice and a box share. Most slices of a tensor that many ranks wrote are far away: found quickly."""
    for begin, length, start, count in zip(stored.offset, stored.shape, box.offset, box.shape, strict=True):
        if begin >= start + count or start >= begin + length:
            return None
    return box.intersection(Box(tuple(stored.offset), tuple(stored.shape)))


def _of_slice(manifest: Manifest, name: str, stored: Slice, copies: Sequence[_Copy]) -> Iterator[WantedChunk]:
    first, last = min(way.source for way, _ in copies), max(way.end for way, _ in copies)
    for chunk in slice_chunks(manifest, name, stored, first, last):
        parts = [
            (part, memory) for way, memory in copies for part in way.within(chunk.place, chunk.place + chunk.length)
        ]
        if parts:
            yield _wanted(chunk, stored.length, parts)


def _wanted(chunk: Chunk, slice_length: int, parts: list[_Copy]) -> WantedChunk:
    straight = None
    for number, (way, memory) in enumerate(parts):
        if isinstance(memory, memoryview) and not way.strides and way.run == chunk.length:
            straight = memory[way.target : way.target + way.run]
            del parts[number]
            break
    return WantedChunk(
        chunk.holds, chunk.place, chunk.key, chunk.start, chunk.length, chunk.digest, chunk.offset,
        slice_length, straight, tuple(parts),
    )  # fmt: skip
