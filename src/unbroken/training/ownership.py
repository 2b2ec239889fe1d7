"""Which rank stages what: rules that each rank computes alone, from names and numbers."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

Runs = tuple[tuple[int, int], ...]
"""Indices along one dimension: first, and that after the last, of each run of neighbours."""

# Whoever restores needs every tensor that all ranks have alike, and so the record of each rank that staged one.
SMALL = 64 << 10
"""Bytes from which dealing a tensor out is worth a reader's request: smaller ones are all rank 0's."""
DEALERS = 128
"""Over so many ranks tensors are dealt out at most: with more, each uploads little less, and a reader asks for more."""


@dataclass(frozen=True)
class Cut:
    """How a tensor is spread over one dimension of a mesh.

    Args:
        dim: of the tensor, cut into as many parts as there are ranks along the mesh dimension.
        factor: the tensor is cut into so many parts first, and each of them over the ranks: what tensor parallelism
            and FSDP make together. 1 otherwise.
    """

    dim: int
    factor: int = 1


@dataclass(frozen=True)
class Part:
    """What one rank holds of a tensor: a box.

    Args:
        offset: where it begins, an index for each dimension.
        shape: how far it reaches; with a 0 in it, nothing.
        whole: shape of the tensor.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    whole: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """Whether it holds no element."""
        return 0 in self.shape

    @property
    def complete(self) -> bool:
        """Whether it is the whole tensor."""
        return self.shape == self.whole


def dealt_to(name: str, count: int) -> int:
    """Which of ``count`` takes the thing of this name: the same everywhere, and about as many for each."""
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) % count


def stager_of(name: str, size: int, world_size: int) -> int:
    """The rank that stages a plain parameter, or a plain tensor of an optimizer, which all ranks have alike.

    Args:
        name: of the tensor in the checkpoint.
        size: bytes.
    """
    return 0 if size < SMALL else dealer_of(name, world_size)


def dealer_of(name: str, world_size: int) -> int:
    """The same of a tensor that is not small: one of at most :data:`DEALERS` ranks at even distances."""
    dealers = min(world_size, DEALERS)
    return dealt_to(name, dealers) * world_size // dealers


def takes_turn(name: str, sizes: Sequence[int], coordinate: Sequence[int]) -> bool:
    """Whether it is for this coordinate to stage what all along these mesh dimensions have alike."""
    return all(at == dealt_to(name, size) for size, at in zip(sizes, coordinate, strict=True))


@lru_cache(maxsize=1 << 16)
def part_of(
    whole: tuple[int, ...], mesh: tuple[int, ...], coordinate: tuple[int, ...], cuts: tuple[Cut | None, ...]
) -> Part | None:
    """The part of a tensor at one coordinate of a mesh; None where that is not one box.

    Args:
        whole: shape of the tensor.
        mesh: ranks along each dimension of the mesh.
        coordinate: of the rank.
        cuts: for each dimension of the mesh, in the order in which they are made; None: replicated.
    """
    held: list[Runs] = [((0, length),) if length else () for length in whole]
    for count, at, cut in zip(mesh, coordinate, cuts, strict=True):
        if cut is not None:
            pieces = [_chunk(held[cut.dim], cut.factor, number) for number in range(cut.factor)]
            held[cut.dim] = _join(run for piece in pieces for run in _chunk(piece, count, at))
    if any(len(runs) == 0 for runs in held):
        return Part((0,) * len(whole), tuple(_length(runs) for runs in held), whole)
    if any(len(runs) > 1 for runs in held):
        return None
    return Part(tuple(runs[0][0] for runs in held), tuple(_length(runs) for runs in held), whole)


def _chunk(runs: Runs, count: int, at: int) -> Runs:
    """The part numbered ``at`` of ``count``, as ``torch.chunk`` cuts: all alike, the last ones shorter or empty."""
    length = _length(runs)
    size = -(-length // count)
    return _between(runs, min(at * size, length), min((at + 1) * size, length))


def _between(runs: Runs, start: int, end: int) -> Runs:
    """The indices whose place among all is in a range."""
    found, passed = [], 0
    for first, last in runs:
        low, high = max(start - passed, 0), min(end - passed, last - first)
        if low < high:
            found.append((first + low, first + high))
        passed += last - first
    return tuple(found)


def _join(runs: Iterable[tuple[int, int]]) -> Runs:
    joined: list[tuple[int, int]] = []
    for first, last in runs:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def _length(runs: Runs) -> int:
    return sum(last - first for first, last in runs)
