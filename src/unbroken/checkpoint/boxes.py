"""Boxes of a tensor, and the bytes that two of them share, copied in as few strokes as they allow.

The bytes of a box lie in row-major order without gaps. What two boxes have in common lies in each of them as runs at
even distances: a :class:`Way` says so in a few numbers, whatever the number of runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

_WIDTHS: dict[int, Literal["Q", "I", "H", "B"]] = {8: "Q", 4: "I", 2: "H", 1: "B"}
"""Bytes that one stroke with a stride moves at a time, and what memoryview calls them."""
_STROKE = 100
"""A stroke costs about as much as this many elements of one with a stride."""


@dataclass(frozen=True)
class Box:
    """A box of a tensor: where it begins and how long it is, an index for each dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """All of a tensor."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def intersection(self, other: Box) -> Box | None:
        """What both hold, in the same tensor; None where they share no element."""
        offset, shape = [], []
        for begin, length, start, count in zip(self.offset, self.shape, other.offset, other.shape, strict=True):
            first = max(begin, start)
            common = min(begin + length, start + count) - first
            if common <= 0:
                return None
            offset.append(first)
            shape.append(common)
        return Box(tuple(offset), tuple(shape))

    def holds(self, other: Box) -> bool:
        """Whether the other lies within this one, which it must do with its edges even where it is empty."""
        return len(self.shape) == len(other.shape) and all(
            begin <= start and count >= 0 and start + count <= begin + length
            for begin, length, start, count in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        )


@dataclass(frozen=True)
class Stride:
    """``count`` runs, or groups of them, at even distances in bytes."""

    count: int
    source: int
    target: int


@dataclass(frozen=True)
class Way:
    """Which bytes go where: runs of ``run`` bytes from ``source`` on to ``target`` on, repeated along each stride.

    Outer strides come first. Runs follow each other in the source as their bytes do.
    """

    source: int
    target: int
    strides: tuple[Stride, ...]
    run: int

    @property
    def end(self) -> int:
        """The byte after the last in the source."""
        return self.source + self.run + sum((each.count - 1) * each.source for each in self.strides)

    def within(self, start: int, end: int) -> Iterator[Way]:
        """The parts of this way whose source bytes lie from ``start`` to before ``end``; their sources are counted from
        ``start``. There are few of them: at most two beside the middle one for each stride."""
        for part in self._cut(start, end):
            yield Way(part.source - start, part.target, part.strides, part.run)

    def _cut(self, start: int, end: int) -> Iterator[Way]:
        if end <= self.source or self.end <= start:
            return
        if start <= self.source and self.end <= end:
            yield self
        elif not self.strides:
            first = max(start, self.source)
            yield Way(first, self.target + first - self.source, (), min(end, self.end) - first)
        else:
            yield from self._cut_stride(start, end)

    def _cut_stride(self, start: int, end: int) -> Iterator[Way]:
        outer, inner = self.strides[0], self.strides[1:]
        extent = Way(0, 0, inner, self.run).end
        low, high = start - self.source, end - self.source
        touched = range(max(0, (low - extent) // outer.source + 1), min(outer.count, -(-high // outer.source)))
        first = max(touched.start, -(-low // outer.source))
        last = min(touched.stop, (high - extent) // outer.source + 1)
        middle = range(first, last) if first < last else range(touched.stop, touched.stop)
        for number in range(touched.start, middle.start):
            yield from self._at(outer, number, inner)._cut(start, end)
        if middle:
            yield self._at(outer, first, (Stride(len(middle), outer.source, outer.target), *inner))
        for number in range(middle.stop, touched.stop):
            yield from self._at(outer, number, inner)._cut(start, end)

    def _at(self, stride: Stride, number: int, strides: tuple[Stride, ...]) -> Way:
        return Way(self.source + number * stride.source, self.target + number * stride.target, strides, self.run)

    def copy(self, source: memoryview, target: memoryview) -> None:
        """Copy the bytes; both views are 1-D and of bytes, the target is writable."""
        if not self.strides:
            target[self.target : self.target + self.run] = source[self.source : self.source + self.run]
            return
        rows = math.prod(each.count for each in self.strides)
        longest = max(self.strides, key=lambda each: each.count)
        width = math.gcd(8, self.run, longest.source, longest.target)
        words = self.run // width
        if rows // longest.count * words + rows * words // _STROKE < rows:
            self._copy_columns(source, target, longest, width)
        else:
            for begin, to in self._places(self.strides):
                target[to : to + self.run] = source[begin : begin + self.run]

    def _copy_columns(self, source: memoryview, target: memoryview, along: Stride, width: int) -> None:
        """Short runs: the same few bytes of all runs along one stride at a time."""
        others = tuple(each for each in self.strides if each is not along)
        kind = _WIDTHS[width]
        spans = [(along.count - 1) * step + width for step in (along.source, along.target)]
        for begin, to in self._places((*others, Stride(self.run // width, width, width))):
            words = source[begin : begin + spans[0]].cast(kind)[:: along.source // width]
            target[to : to + spans[1]].cast(kind)[:: along.target // width] = words

    def _places(self, strides: Sequence[Stride]) -> Iterator[tuple[int, int]]:
        """(source, target) of each group along the strides."""
        for numbers in product(*(range(each.count) for each in strides)):
            steps = list(zip(numbers, strides, strict=True))
            yield (
                self.source + sum(number * each.source for number, each in steps),
                self.target + sum(number * each.target for number, each in steps),
            )


def way_between(part: Box, source: Box, target: Box, item: int) -> Way:
    """The way of ``part``, which is not empty and lies in both boxes, from the bytes of one to those of the other.

    Args:
        item: bytes of an element.
    """
    run, strides = item, list[Stride]()  # from the inside
    begin = to = 0
    steps = item, item
    for axis in reversed(range(len(part.shape))):
        begin += (part.offset[axis] - source.offset[axis]) * steps[0]
        to += (part.offset[axis] - target.offset[axis]) * steps[1]
        run, strides = _joined(run, strides, Stride(part.shape[axis], *steps))
        steps = steps[0] * source.shape[axis], steps[1] * target.shape[axis]
    return Way(begin, to, tuple(reversed(strides)), run)


def _joined(run: int, strides: list[Stride], outer: Stride) -> tuple[int, list[Stride]]:
    """Take a stride around others, as one with them where there is no gap on either side."""
    if outer.count == 1:
        return run, strides
    if not strides and outer.source == outer.target == run:
        return run * outer.count, strides
    if strides:
        inner = strides[-1]
        if (outer.source, outer.target) == (inner.count * inner.source, inner.count * inner.target):
            joined = Stride(inner.count * outer.count, inner.source, inner.target)
            return run, [*strides[:-1], joined]
    return run, [*strides, outer]


def copy_box(
    part: Box, source: Box, source_data: memoryview, target: Box, target_data: memoryview, item: int
) -> None:  # fmt: skip
    """Copy the elements of ``part``, which lies in both boxes, from the bytes of one box to those of the other.

    Args:
        source_data: the bytes of ``source`` in row-major order, 1-D.
        target_data: those of ``target``, writable.
        item: bytes of an element.
    """
    if part.size:
        way_between(part, source, target, item).copy(source_data, target_data)
