"""Boxes: what two share is copied to its place, whole or by any interval of bytes, whatever the strides."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.checkpoint.conftest import tensor_of
from tests.checkpoint.sharded import box_of, cut

from unbroken.checkpoint import Box
from unbroken.checkpoint.boxes import Stride, Way, copy_box, way_between

_ITEMS = [1, 2, 4, 8, 16]
_LARGE = (6, 40, 9, 12)
"""A shape with so many rows that short runs are copied by columns."""


@st.composite
def pairs(draw: st.DrawFn) -> tuple[tuple[int, ...], Box, Box, int]:
    """A tensor's shape, two boxes of it, and bytes an element."""
    shape = draw(st.one_of(st.just(_LARGE), st.lists(st.integers(0, 7), max_size=5).map(tuple)))
    return shape, draw(box_of(shape)), draw(box_of(shape)), draw(st.sampled_from(_ITEMS))


def content(shape: tuple[int, ...], item: int) -> bytes:
    size = item
    for length in shape:
        size *= length
    return bytes(tensor_of("t", "uint8", (size,)).data)


def expected(shape: tuple[int, ...], one: Box, other: Box, item: int) -> bytes:
    """The bytes of ``other`` after what it shares with ``one`` was copied: 0xee elsewhere."""
    data, marked = bytearray(content(shape, item)), bytearray(b"\xee" * len(content(shape, item)))
    part = one.intersection(other)
    if part is not None:
        for at in cut_places(shape, part):
            marked[at * item : (at + 1) * item] = data[at * item : (at + 1) * item]
    return cut(bytes(marked), shape, other, item)


def cut_places(shape: tuple[int, ...], box: Box) -> list[int]:
    """Numbers of the box's elements in the tensor."""
    size = content(shape, 1)
    numbers = b"".join(number.to_bytes(8, "little") for number in range(len(size)))
    found = cut(numbers, shape, box, 8)
    return [int.from_bytes(found[at : at + 8], "little") for at in range(0, len(found), 8)]


@given(pairs())
@example(((), Box((), ()), Box((), ()), 16))
@example(((0, 3), Box((0, 0), (0, 3)), Box((0, 1), (0, 2)), 4))
@example((_LARGE, Box.whole(_LARGE), Box((0, 0, 0, 3), (6, 40, 9, 1)), 2))
@example((_LARGE, Box.whole(_LARGE), Box((1, 0, 2, 3), (5, 40, 3, 2)), 1))
def test_what_two_boxes_share_is_copied_and_nothing_else_is_touched(
    found: tuple[tuple[int, ...], Box, Box, int],
) -> None:
    shape, one, other, item = found
    source = memoryview(cut(content(shape, item), shape, one, item))
    target = bytearray(b"\xee" * (other.size * item))
    part = one.intersection(other)
    if part is not None:
        assert part == other.intersection(one)
        assert one.holds(part)
        assert other.holds(part)
        copy_box(part, one, source, other, memoryview(target), item)
    assert bytes(target) == expected(shape, one, other, item)


@given(pairs(), st.integers(1, 200))
@example((_LARGE, Box.whole(_LARGE), Box((1, 3, 2, 3), (5, 30, 3, 2)), 4), 7)
def test_a_source_that_comes_in_intervals_of_bytes_gives_the_same(
    found: tuple[tuple[int, ...], Box, Box, int], size: int
) -> None:
    shape, one, other, item = found
    source = cut(content(shape, item), shape, one, item)
    target = bytearray(b"\xee" * (other.size * item))
    part = one.intersection(other)
    if part is not None:
        way = way_between(part, one, other, item)
        moved = 0
        for start in range(0, len(source), size):
            interval = memoryview(source[start : start + size])
            for each in way.within(start, start + len(interval)):
                each.copy(interval, memoryview(target))
                moved += bytes_of(each)
        assert moved == part.size * item == bytes_of(way)
    assert bytes(target) == expected(shape, one, other, item)


def bytes_of(way: Way) -> int:
    size = way.run
    for stride in way.strides:
        size *= stride.count
    return size


@given(st.data())
def test_an_interval_makes_few_parts_however_many_runs_there_are(data: st.DataObject) -> None:
    shape = (50, 60, 70, 80)
    way = way_between(Box((1, 2, 3, 4), (40, 50, 60, 70)), Box.whole(shape), Box((0, 0, 0, 0), (45, 55, 65, 75)), 4)
    start = data.draw(st.integers(0, way.end))
    end = data.draw(st.integers(start, way.end))
    assert len(way.strides) == 3
    assert len(list(way.within(start, end))) <= 2 * len(way.strides) + 1


@pytest.mark.parametrize(
    ("part", "source", "target", "way"),
    [
        (Box((4, 0), (2, 8)), Box((3, 0), (5, 8)), Box((4, 0), (2, 8)), Way(32, 0, (), 64)),
        (Box((0, 0), (4, 8)), Box((0, 0), (4, 8)), Box((0, 0), (4, 8)), Way(0, 0, (), 128)),
        (Box((2, 1), (1, 3)), Box((0, 0), (4, 8)), Box((2, 0), (1, 8)), Way(68, 4, (), 12)),
        (Box((0, 0), (4, 3)), Box((0, 0), (4, 8)), Box((0, 0), (4, 3)), Way(0, 0, (Stride(4, 32, 12),), 12)),
        (
            Box((0, 0, 0), (3, 4, 2)), Box((0, 0, 0), (3, 4, 5)), Box((0, 0, 0), (3, 4, 2)),
            Way(0, 0, (Stride(12, 20, 8),), 8),
        ),
    ],
    ids=["rows of a shard", "all", "part of a row", "columns", "planes of columns"],
)  # fmt: skip
def test_what_is_without_gaps_on_both_sides_is_one_run(part: Box, source: Box, target: Box, way: Way) -> None:
    assert way_between(part, source, target, 4) == way


def test_memory_that_lies_at_odd_addresses_is_copied_as_any() -> None:
    source, target = bytes(range(200)) + bytes(56) + b"!", bytearray(129)
    Way(1, 1, (Stride(16, 16, 8),), 8).copy(memoryview(source), memoryview(target))
    assert target[1:] == b"".join(source[1 + 16 * at : 9 + 16 * at] for at in range(16))
    assert target[0] == 0


def test_boxes_of_nothing_share_nothing() -> None:
    assert Box((0,), (0,)).intersection(Box((0,), (3,))) is None
    assert Box((0,), (3,)).intersection(Box((3,), (2,))) is None
    assert Box((), ()).intersection(Box((), ())) == Box((), ())
    assert (Box((), ()).size, Box((2, 1), (0, 5)).size) == (1, 0)


@pytest.mark.parametrize(
    ("box", "held"),
    [
        (Box((0, 0), (4, 8)), True),
        (Box((4, 0), (0, 8)), True),
        (Box((1, 0), (4, 8)), False),
        (Box((0, -1), (4, 8)), False),
        (Box((5, 0), (0, 8)), False),
        (Box((0, 0), (-1, 8)), False),
        (Box((0,), (4,)), False),
    ],
)
def test_a_box_knows_what_lies_outside(box: Box, held: bool) -> None:
    assert Box((0, 0), (4, 8)).holds(box) == held
