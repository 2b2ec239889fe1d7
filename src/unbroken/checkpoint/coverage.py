"""Whether the slices of a tensor make up the whole of it, each element once. Nothing is laid out in memory: boxes are
compared, and there may be a thousand of them for each of a thousand tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add, lt

from unbroken.checkpoint.manifest import Slice, TensorRecord


@dataclass(frozen=True)
class Flaw:
    """Why slices do not make up their tensor."""

    text: str
    slices: tuple[Slice, ...] = ()
    """Those to which it is due, if it is due to some."""


@dataclass(frozen=True)
class _Span:
    """Where a slice that has elements lies on one dimension after another."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    piece: Slice


def find_flaw(tensor: TensorRecord) -> Flaw | None:
    """What is wrong with the slices of a tensor, or None where they cover it exactly.

    Slices without elements count for nothing. Boxes within the tensor, as many elements together as it has, and no two
    with one in common: that is the whole.
    """
    shape, slices = tensor.shape, tensor.slices
    if not slices:
        return Flaw("no slice of it is there")
    offsets, shapes = [piece.offset for piece in slices], [piece.shape for piece in slices]
    if {*map(len, offsets), *map(len, shapes)} != {len(shape)}:
        wrong = next(piece for piece in slices if not len(piece.offset) == len(piece.shape) == len(shape))
        return Flaw(f"{_box(wrong)} has not as many dimensions", (wrong,))
    starts, lengths = list(zip(*offsets, strict=True)), list(zip(*shapes, strict=True))
    for whole, start, length in zip(shape, starts, lengths, strict=True):
        if min(start) < 0 or min(length) < 0 or max(map(add, start, length)) > whole:
            return _outside(tensor)
    cut = [d for d, whole in enumerate(shape) if min(lengths[d]) != whole]  # the rest is in each slice, whole
    if len(cut) == 1 and _in_a_row(starts[cut[0]], lengths[cut[0]], shape[cut[0]]):
        return None
    return _find_overlap(slices) or _find_hole(tensor, shapes)


def _in_a_row(starts: Sequence[int], lengths: Sequence[int], whole: int) -> bool:
    """Whether intervals follow one another from 0 to ``whole``: how nearly all sharded tensors are cut."""
    row = sorted(pair for pair in zip(starts, lengths, strict=True) if pair[1])
    ends = list(accumulate(length for _, length in row))
    return [start for start, _ in row] == [0, *ends[:-1]] and ends[-1:] == [whole]


def _outside(tensor: TensorRecord) -> Flaw:
    for piece in tensor.slices:
        for whole, start, length in zip(tensor.shape, piece.offset, piece.shape, strict=True):
            if start < 0 or length < 0 or start + length > whole:
                return Flaw(f"{_box(piece)} is outside of it", (piece,))
    raise AssertionError("every slice is inside")


def _find_hole(tensor: TensorRecord, shapes: Sequence[Sequence[int]]) -> Flaw | None:
    held, wanted = sum(map(math.prod, shapes)), math.prod(tensor.shape)
    if held == wanted:
        return None
    return Flaw(f"its slices hold {held} of {wanted} elements")


def _find_overlap(slices: Sequence[Slice]) -> Flaw | None:
    spans = [
        _Span(tuple(piece.offset), tuple(map(add, piece.offset, piece.shape)), piece)
        for piece in slices
        if 0 not in piece.shape
    ]
    for group in _inseparable(spans):
        if (found := _sweep(group)) is not None:
            return Flaw(f"{_box(found[0])} and {_box(found[1])} have elements in common", found)
    return None


def _inseparable(spans: list[_Span]) -> list[list[_Span]]:
    """Groups of more than one span that no straight cut through the tensor parts; spans of different groups have
    nothing in common. A grid of any number of dimensions leaves none."""
    left: list[list[_Span]] = []
    pending = [spans]
    while pending:
        group = pending.pop()
        if len(group) < 2:
            continue
        for dimension in range(len(group[0].begin)):
            parts = _parted(group, dimension)
            if len(parts) > 1:
                pending.extend(parts)
                break
        else:
            left.append(group)
    return left


def _parted(group: list[_Span], dimension: int) -> list[list[_Span]]:
    parts: list[list[_Span]] = []
    reach = -1
    for span in sorted(group, key=lambda span: span.begin[dimension]):
        if span.begin[dimension] >= reach:
            parts.append([])
        parts[-1].append(span)
        reach = max(reach, span.end[dimension])
    return parts


def _sweep(group: list[_Span]) -> tuple[Slice, Slice] | None:
    """Two that have an element in common, looked for along the dimension on which the fewest lie side by side."""
    dimensions = range(len(group[0].begin))
    along = max(dimensions, key=lambda d: len({span.begin[d] for span in group}), default=None)
    if along is None:  # of a tensor with a single element
        return group[0].piece, group[1].piece
    active: list[_Span] = []
    for span in sorted(group, key=lambda span: span.begin[along]):
        active = [other for other in active if other.end[along] > span.begin[along]]
        for other in active:
            if all(map(lt, span.begin, other.end)) and all(map(lt, other.begin, span.end)):
                return other.piece, span.piece
        active.append(span)
    return None


def _box(piece: Slice) -> str:
    """As in ``w[0:4, 2:3]``."""
    spans = zip(piece.offset, piece.shape, strict=False)
    return f"[{', '.join(f'{start}:{start + length}' for start, length in spans)}]"
