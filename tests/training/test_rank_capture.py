"""What each of several ranks captures: without a message, and all of it together is the whole state once.

The ranks are pretended, one after another in this process, by torch's process group that does nothing: a message that
was sent would be answered with nonsense.
"""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from unbroken.checkpoint.tree import tensor_names
from unbroken.errors import ConfigError
from unbroken.training.capture import Captured, capture
from unbroken.training.objects import StateObject, state_objects
from unbroken.training.ranks import Ranks


@contextlib.contextmanager
def pretending(rank: int, count: int) -> Iterator[Ranks]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
    # It remembers meshes, which know their own rank, and takes those of two ranks for one.
    torch._C._clear_DTensor_sharding_propagator_cache()
    DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache.cache_clear()
    try:
        yield Ranks(rank, count)
    finally:
        dist.destroy_process_group()


def each_rank(count: int, build: Callable[[Ranks], list[StateObject]]) -> list[Captured]:
    found = []
    for rank in range(count):
        with pretending(rank, count) as ranks:
            found.append(capture(build(ranks), ranks))
    return found


def holding(value: Any, name: str = "part") -> list[StateObject]:
    return [StateObject(name, None, lambda: value, lambda _: None)]


def spread(truth: torch.Tensor, mesh: DeviceMesh, placements: list[Any]) -> DTensor:
    """As torch itself cuts, by index; nothing is sent."""
    local = truth
    for dim, placement in enumerate(placements):
        if not isinstance(placement, Replicate):
            parts, _ = placement._split_tensor(local, mesh.size(dim), with_padding=False, contiguous=True)
            local = parts[mesh.get_local_rank(dim)]
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=truth.shape, stride=truth.stride())


def reassembled(found: list[Captured], name: str) -> torch.Tensor:
    """Out of what all ranks staged; it must cover the whole, once."""
    staged = [(each.tensors[name], each.boxes.get(name)) for each in found if name in each.tensors]
    (first, box), *_ = staged
    shape = first.shape if box is None else box.whole
    whole, count = torch.zeros(shape, dtype=first.dtype), torch.zeros(shape, dtype=torch.int64)
    for tensor, part in staged:
        at = tuple(
            slice(start, start + length)
            for start, length in zip(part.offset if part else [0] * len(shape), tensor.shape, strict=True)
        )
        whole[at] = tensor
        count[at] += 1
    assert bool((count == 1).all())
    return whole


@st.composite
def spreads(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], list[Any], torch.dtype]:
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
    mesh = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    placement = st.just(Replicate()) | (st.integers(0, len(shape) - 1).map(Shard) if shape else st.nothing())
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]))
    return shape, mesh, [draw(placement) for _ in mesh], dtype


@given(spreads())
@settings(max_examples=40)
def test_all_that_ranks_stage_of_a_sharded_tensor_is_the_tensor_once(layout):
    shape, mesh, placements, dtype = layout
    truth = torch.randn(shape).to(dtype)
    count = 1
    for length in mesh:
        count *= length

    def build(_: Ranks) -> list[StateObject]:
        return holding({"t": spread(truth, init_device_mesh("cpu", mesh), placements)})

    found = each_rank(count, build)
    assert torch.equal(reassembled(found, "part/t"), truth)
    assert all(each.tree == found[0].tree for each in found)


def test_tensor_parallel_parts_of_data_parallel_ranks_are_staged_once():
    truth = torch.arange(12.0).reshape(6, 2)

    def build(_: Ranks) -> list[StateObject]:
        mesh = init_device_mesh("cpu", (2, 3), mesh_dim_names=("data", "tensor"))
        along = mesh["data"]
        return holding({"t": spread(truth, mesh["tensor"], [Shard(0)]), "d": spread(truth, along, [Shard(1)])})

    found = each_rank(6, build)
    assert torch.equal(reassembled(found, "part/t"), truth)
    assert torch.equal(reassembled(found, "part/d"), truth)


def test_fsdp_over_tensor_parallelism_on_one_dimension_is_staged_once():
    truth = torch.arange(16.0).reshape(8, 2)

    def build(_: Ranks) -> list[StateObject]:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        return holding({"t": spread(truth, mesh, [_StridedShard(0, split_factor=2), Shard(0)])})

    found = each_rank(4, build)
    assert [tuple(each.boxes["part/t"].offset) for each in found] == [(0, 0), (4, 0), (2, 0), (6, 0)]
    assert torch.equal(reassembled(found, "part/t"), truth)


def test_a_rank_outside_of_the_mesh_stages_nothing():
    truth = torch.arange(4.0)

    def build(ranks: Ranks) -> list[StateObject]:
        mesh = DeviceMesh("cpu", [0, 1])
        local = truth.chunk(2)[ranks.rank] if ranks.rank < 2 else torch.empty(0)
        return holding({"t": DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=(4,), stride=(1,))})

    found = each_rank(3, build)
    assert [list(each.tensors) for each in found] == [["part/t"], ["part/t"], []]
    assert found[2].shared == found[0].shared


def test_tied_parts_are_tied_on_every_rank_also_where_they_are_empty():
    def build(_: Ranks) -> list[StateObject]:
        weight = spread(torch.randn(2, 3), init_device_mesh("cpu", (4,)), [Shard(0)])
        other = spread(torch.randn(2, 3), init_device_mesh("cpu", (4,)), [Shard(0)])
        return holding({"embed": weight, "head": weight.detach(), "other": other})

    found = each_rank(4, build)
    assert all(tensor_names(each.tree) == ["part/embed", "part/other"] for each in found)
    assert [sorted(each.tensors) for each in found] == [["part/embed", "part/other"]] * 2 + [[]] * 2
    assert len({each.shared["part"] for each in found}) == 1


@pytest.mark.parametrize(
    ("placement", "words"),
    [(Partial(), "no part of its values"), (_StridedShard(0, split_factor=2), "no neighbours")],
)
def test_what_is_no_box_is_refused_by_its_path(placement, words):
    with pretending(0, 2) as ranks:
        mesh = init_device_mesh("cpu", (2,))
        local = torch.zeros(8) if placement.is_partial() else torch.zeros(4)
        tensor = DTensor.from_local(local, mesh, [placement], run_check=False, shape=(8,), stride=(1,))
        with pytest.raises(ConfigError, match=words) as caught:
            capture(holding({"grads": tensor}), ranks)
        assert "part['grads']" in caught.value.message
        assert caught.value.kind == "sharded"


def test_a_part_of_another_size_than_torch_cuts_is_refused():
    with pretending(0, 2) as ranks:
        mesh = init_device_mesh("cpu", (2,))
        tensor = DTensor.from_local(torch.zeros(6), mesh, [Shard(0)], run_check=False, shape=(8,), stride=(1,))
        with pytest.raises(ConfigError, match=r"a part of shape \[6\]"):
            capture(holding({"t": tensor}), ranks)


def test_one_process_that_saves_for_itself_refuses_parts():
    with pretending(0, 2):
        tensor = spread(torch.zeros(4), init_device_mesh("cpu", (2,)), [Shard(0)])
        with pytest.raises(ConfigError, match="saves for itself alone"):
            capture(holding({"t": tensor}))


def training() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "scale": torch.ones(3)}


def test_plain_tensors_are_dealt_out_by_name_and_buffers_are_rank_0_s(monkeypatch):
    monkeypatch.setattr("unbroken.training.ownership.SMALL", 0)
    found = [capture(state_objects(training()), Ranks(rank, 4)) for rank in range(4)]
    alone = capture(state_objects(training()))
    shared = [name for name in alone.tensors if not name.startswith("rng/")]
    taken = [name for each in found for name in each.tensors if not name.startswith("rank")]
    assert sorted(taken) == sorted(shared)
    for rank, each in enumerate(found):
        for name in each.tensors:
            if "running" in name or "batches" in name or name == "scale":
                assert rank == 0
            elif not name.startswith("rank"):
                assert rank == zlib.crc32(name.encode()) % 4
    assert sum(bool(set(each.tensors) - {f"rank{each.ranks.rank}/rng/torch"}) for each in found) > 1


def test_small_tensors_are_rank_0_s():
    model = torch.nn.ParameterDict({f"small{number}": torch.zeros(16383) for number in range(9)})
    model |= {f"large{number}": torch.zeros(16384) for number in range(9)}
    found = [capture(state_objects({"model": model}), Ranks(rank, 4)) for rank in range(4)]
    shared = [{name for name in each.tensors if not name.startswith("rank")} for each in found]
    small = {f"model/small{number}" for number in range(9)}
    assert [names & small for names in shared] == [small, set(), set(), set()]
    assert sum(map(len, shared)) == 18
    assert len([names for names in shared[1:] if names]) > 1


def test_what_is_a_rank_s_own_bears_its_number():
    state = training() | {"own": torch.Generator(), "python": random.Random(3), "noise": torch.zeros(2)}
    found = capture(state_objects(state, ["noise"]), Ranks(3, 8))
    assert set(found.tree) == {"model", "optimizer", "scale"} == set(found.shared)
    assert set(found.local) == {"own", "python", "noise", "rng"}
    assert set(tensor_names(found.local)) == {name for name in found.tensors if name.startswith("rank3/")}
    assert {"rank3/own", "rank3/noise", "rank3/rng/torch"} <= set(found.tensors)


def test_the_digest_of_an_object_tells_ranks_apart_that_differ_in_more_than_tensors():
    def digests(epoch: int, fill: float) -> dict[str, str]:
        state = [StateObject("sampler", None, lambda: {"epoch": epoch, "b": 1, "t": torch.full((2,), fill)}, print)]
        return capture(state, Ranks(0, 2)).shared

    assert digests(1, 0.0) == digests(1, 5.0) != digests(2, 0.0)


def test_objects_named_like_ranks_are_refused_where_there_are_several():
    objects = holding(torch.zeros(1), "rank2")
    assert "rank2" in capture(objects).tree
    with pytest.raises(ConfigError, match="'rank2' cannot name"):
        capture(objects, Ranks(0, 2))
