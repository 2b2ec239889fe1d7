"""Ranks that compute alone agree: every element of a tensor is staged, and by one rank alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from unbroken.training.ownership import Cut, Part, dealer_of, dealt_to, part_of, stager_of, takes_turn

MESHES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@st.composite
def layouts(draw) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Cut | None, ...]]:
    """Shape of a tensor, of a mesh, and how one lies on the other."""
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    mesh = draw(MESHES)
    dims = st.sampled_from(range(len(shape))) if shape else st.nothing()
    cut = st.none() | dims.map(Cut) if shape else st.none()
    return shape, mesh, tuple(draw(cut) for _ in mesh)


def placements(cuts: tuple[Cut | None, ...]) -> list[object]:
    return [
        Replicate() if cut is None
        else Shard(cut.dim) if cut.factor == 1
        else _StridedShard(cut.dim, split_factor=cut.factor)
        for cut in cuts
    ]  # fmt: skip


def coordinates(mesh: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, mesh)))


def elements(part: Part) -> torch.Tensor:
    """Which elements of the whole a box holds."""
    held = torch.zeros(part.whole, dtype=torch.int64)
    held[tuple(slice(start, start + length) for start, length in zip(part.offset, part.shape, strict=True))] = 1
    return held


@given(layouts())
def test_parts_are_those_that_torch_cuts(layout):
    shape, mesh, cuts = layout
    for at in coordinates(mesh):
        part = part_of(shape, mesh, at, cuts)
        local, offset = _compute_local_shape_and_global_offset(shape, mesh, list(at), placements(cuts))
        assert part is not None
        assert part.shape == local
        assert part.empty or part.offset == offset


@given(layouts(), st.text(max_size=8))
def test_every_element_is_staged_once(layout, name):
    shape, mesh, cuts = layout
    alike = [dim for dim, cut in enumerate(cuts) if cut is None]
    staged = torch.zeros(shape, dtype=torch.int64)
    for at in coordinates(mesh):
        part = part_of(shape, mesh, at, cuts)
        if takes_turn(name, [mesh[dim] for dim in alike], [at[dim] for dim in alike]):
            staged += elements(part)
    assert bool((staged == 1).all())


@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 4))
def test_what_fsdp_and_tensor_parallelism_cut_together_is_what_torch_says(length, data, tensor):
    cuts = (Cut(0, tensor), Cut(0))
    boxes = 0
    for at in coordinates((data, tensor)):
        part = part_of((length,), (data, tensor), at, cuts)
        local, offset = _compute_local_shape_and_global_offset((length,), (data, tensor), list(at), placements(cuts))
        if part is not None:
            boxes += 1
            assert part.shape == local
            assert part.empty or part.offset == offset
    if length % (data * tensor) == 0:  # FSDP makes no others
        assert boxes == data * tensor


@given(st.integers(1, 30), st.integers(2, 4), st.integers(2, 4), st.integers(0, 3))
def test_rows_that_are_no_neighbours_are_no_box(length, count, factor, at):
    assume(at < count)
    part = part_of((length,), (count,), (at,), (Cut(0, factor),))
    pieces = torch.arange(length).chunk(factor)
    held = torch.cat([piece.chunk(count)[at] if at < len(piece.chunk(count)) else piece[:0] for piece in pieces])
    neighbours = len(held) == 0 or held.tolist() == list(range(int(held[0]), int(held[0]) + len(held)))
    assert (part is not None) == neighbours
    if part is not None:
        assert part.shape == (len(held),)


@pytest.mark.parametrize("world", [1, 2, 3, 8, 64])
def test_names_are_dealt_out_about_evenly(world):
    names = [f"model/layers.{layer}.{part}.weight" for layer in range(200) for part in ("q", "k", "v", "o", "up")]
    counts = [0] * world
    for name in names:
        counts[dealt_to(name, world)] += 1
    assert sum(counts) == len(names)
    assert max(counts) <= 2.5 * math.ceil(len(names) / world)


def test_the_rule_of_the_deal_is_fixed():
    """Ranks of one training that run different versions for a moment still deal alike."""
    names = ["model/weight", "optimizer/state/0/exp_avg", "model/änderung", ""]
    assert [dealt_to(name, 8) for name in names] == [5, 4, 1, 0]


def test_small_tensors_are_all_rank_0_s_so_that_a_reader_finds_them_in_one_record():
    names = [f"optimizer/state/{number}/step" for number in range(1000)]
    assert {stager_of(name, 4, 1024) for name in names} == {stager_of(name, 65535, 1024) for name in names} == {0}
    assert len({stager_of(name, 65536, 64) for name in names}) == 64


@pytest.mark.parametrize(("world", "dealers"), [(1, 1), (8, 8), (128, 128), (130, 128), (1024, 128), (10_000, 128)])
def test_tensors_are_dealt_out_over_a_bounded_number_of_ranks_at_even_distances(world, dealers):
    names = [f"model/layers.{number}.weight" for number in range(4000)]
    ranks = sorted({dealer_of(name, world) for name in names})
    assert ranks == [number * world // dealers for number in range(dealers)]
    assert all(stager_of(name, 1 << 20, world) == dealer_of(name, world) for name in names)


@pytest.mark.parametrize("world", [2, 3, 8, 128])
def test_up_to_the_bound_each_rank_is_dealt_its_own_part(world):
    names = [f"model/layers.{number}.weight" for number in range(500)]
    assert [dealer_of(name, world) for name in names] == [dealt_to(name, world) for name in names]
