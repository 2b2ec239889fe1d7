"""Slices that make up a tensor, and such as do not."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoint.ranks import Box

from unbroken.checkpoint import Slice, TensorRecord
from unbroken.checkpoint.coverage import find_flaw


def tensor_with(shape: tuple[int, ...], boxes: list[Box]) -> TensorRecord:
    slices = [Slice(list(offset), list(lengths), 0, 0, 0, []) for offset, lengths in boxes]
    return TensorRecord("w", "uint8", list(shape), slices)


def flaw_text(shape: tuple[int, ...], boxes: list[Box]) -> str:
    flaw = find_flaw(tensor_with(shape, boxes))
    return flaw.text if flaw else ""


def covers_by_counting(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """The same by laying every element out."""
    counted = dict.fromkeys(itertools.product(*map(range, shape)), 0)
    for offset, lengths in boxes:
        for index in itertools.product(*map(range, lengths)):
            place = tuple(o + i for o, i in zip(offset, index, strict=True))
            if place not in counted:
                return False
            counted[place] += 1
    return all(count == 1 for count in counted.values())


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A tensor cut again and again, straight through one box at a time."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6)) if shape else 0):
        offset, lengths = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        d = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, lengths[d]))
        upper = tuple(o + at if k == d else o for k, o in enumerate(offset))
        boxes.append((offset, tuple(at if k == d else n for k, n in enumerate(lengths))))
        boxes.append((upper, tuple(n - at if k == d else n for k, n in enumerate(lengths))))
    return shape, draw(st.permutations(boxes))


@given(tilings())
def test_a_tensor_that_was_cut_is_whole_again(tiling: tuple[tuple[int, ...], list[Box]]) -> None:
    assert flaw_text(*tiling) == ""


@given(tilings(), st.data())
def test_whatever_is_changed_is_judged_as_if_elements_were_counted(
    tiling: tuple[tuple[int, ...], list[Box]], data: st.DataObject
) -> None:
    shape, boxes = tiling
    place = data.draw(st.integers(0, len(boxes) - 1))
    offset, lengths = boxes[place]
    move = data.draw(st.lists(st.integers(-1, 1), min_size=2 * len(shape), max_size=2 * len(shape)))
    changed = (
        tuple(o + m for o, m in zip(offset, move[::2], strict=True)),
        tuple(max(0, n + m) for n, m in zip(lengths, move[1::2], strict=True)),
    )
    boxes = [*boxes[:place], changed, *boxes[place + 1 :]]
    inside = all(
        0 <= o <= o + n <= whole
        for offset, lengths in boxes
        for o, n, whole in zip(offset, lengths, shape, strict=True)
    )
    assert (flaw_text(shape, boxes) == "") == (inside and covers_by_counting(shape, boxes))


def test_five_boxes_around_a_middle_that_no_straight_cut_parts_are_whole() -> None:
    wheel: list[Box] = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]
    assert flaw_text((3, 3), wheel) == ""
    assert flaw_text((3, 3), wheel[:-1]) == "its slices hold 8 of 9 elements"
    turned: list[Box] = [*wheel[:-1], ((0, 1), (1, 1))]
    assert "[0:1, 0:2] and [0:1, 1:2] have elements in common" in (flaw_text((3, 3), turned))


@pytest.mark.parametrize(
    ("shape", "boxes", "text"),
    [
        ((4,), [], "no slice"),
        ((0,), [], "no slice"),
        ((4,), [((0,), (2,))], "hold 2 of 4"),
        ((4,), [((0,), (3,)), ((2,), (2,))], "[0:3] and [2:4] have"),
        ((4,), [((0,), (2,)), ((0,), (2,))], "[0:2] and [0:2] have"),
        ((4,), [((0,), (2,)), ((3,), (2,))], "[3:5] is outside"),
        ((4,), [((-1,), (5,))], "[-1:4] is outside"),
        ((4,), [((4,), (-4,)), ((0,), (4,))], "outside"),
        ((4,), [((0, 0), (4, 1))], "[0:4, 0:1] has not as many dimensions"),
        ((), [((), ()), ((), ())], "[] and [] have"),
        ((2, 2), [((0, 0), (1, 1)), ((1, 1), (1, 1)), ((0, 1), (1, 1))], "hold 3 of 4"),
    ],
)
def test_what_is_wrong_is_said(shape: tuple[int, ...], boxes: list[Box], text: str) -> None:
    assert text in flaw_text(shape, boxes)


def test_the_slices_to_which_it_is_due_are_named() -> None:
    tensor = tensor_with((4,), [((2,), (2,)), ((0,), (3,))])
    flaw = find_flaw(tensor)
    assert flaw is not None
    assert {id(piece) for piece in flaw.slices} == {id(piece) for piece in tensor.slices}


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 12), (1 << 62, 3)])
def test_no_element_is_laid_out(shape: tuple[int, ...]) -> None:
    halves: list[Box] = [((0, 0), (shape[0] // 2, shape[1])), ((shape[0] // 2, 0), (shape[0] // 2, shape[1]))]
    assert flaw_text(shape, halves) == ""
    assert f"of {math.prod(shape)} elements" in flaw_text(shape, halves[:1])
