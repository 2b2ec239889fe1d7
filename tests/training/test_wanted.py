"""What a rank wants of a checkpoint, and where: its guesses are right where the layout did not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.test_rank_capture import holding, pretending, spread
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

from unbroken.checkpoint import Box, Manifest, TensorRecord, Wanted
from unbroken.training.capture import Captured, capture
from unbroken.training.objects import StateObject
from unbroken.training.ownership import dealer_of
from unbroken.training.ranks import Ranks
from unbroken.training.sharding import stager
from unbroken.training.wanted import wanted_of

TRUTH = torch.arange(48.0).reshape(12, 4)


def layouts(kind: str) -> list[StateObject]:
    """Three tensors, spread as a kind of training does; of six ranks."""
    match kind:
        case "fsdp":
            mesh = init_device_mesh("cpu", (6,))
            spreads = [(mesh, [Shard(0)]), (mesh, [Shard(1)]), (mesh, [Replicate()])]
        case "hsdp":
            mesh = init_device_mesh("cpu", (2, 3), mesh_dim_names=("replicate", "shard"))
            spreads = [(mesh, [Replicate(), Shard(0)]), (mesh, [Shard(1), Replicate()]), (mesh, [Replicate()] * 2)]
        case "sliced":
            mesh = init_device_mesh("cpu", (2, 3), mesh_dim_names=("data", "tensor"))
            spreads = [(mesh["tensor"], [Shard(0)]), (mesh["data"], [Shard(0)]), (mesh["tensor"], [Replicate()])]
        case _:
            raise AssertionError(kind)
    return holding({f"t{at}": spread(TRUTH, where, placed) for at, (where, placed) in enumerate(spreads)}, kind)


def head_of(captured: Captured, count: int) -> Manifest:
    return Manifest(
        format=2, run="r", step=1, attempt=1, nonce="", created_at=0.0, world_size=count, parent="",
        state=captured.tree, tensors=[], packs=[], ranks=[], locals=[{}] * count,
    )  # fmt: skip


def record(name: str, shape: tuple[int, ...]) -> TensorRecord:
    return TensorRecord(name, "float32", list(shape), [])


def each(kind: str) -> list[tuple[Captured, Wanted, dict[str, int | None]]]:
    """What each of six ranks stages, wants, and takes for the rank that staged it."""
    found = []
    for rank in range(6):
        with pretending(rank, 6) as ranks:
            objects = layouts(kind)
            captured = capture(objects, ranks)
            live: dict[str, Any] = objects[0].read()
            stagers = {f"{kind}/{name}": stager(f"{kind}/{name}", like, name) for name, like in live.items()}
            wanted = wanted_of(head_of(captured, 6), objects, ranks)
            # Asked while the ranks are what they are.
            boxes = {name: list(wanted.boxes(record(name, (12, 4)))) for name in wanted.names}
            probable = {name: list(wanted.ranks(name)) for name in wanted.names}
            fixed = Wanted(wanted.names, lambda it, boxes=boxes: boxes[it.name], lambda it, at=probable: at[it])
            found.append((captured, fixed, stagers))
    return found


@pytest.mark.parametrize("kind", ["fsdp", "hsdp", "sliced"])
def test_the_rank_that_is_asked_first_is_the_one_that_staged_this_rank_s_part(kind: str) -> None:
    ranks = each(kind)
    for _, wanted, stagers in ranks:
        assert sorted(wanted.names) == [f"{kind}/t{at}" for at in range(3)]
        for name in wanted.names:
            (box,) = wanted.boxes(record(name, (12, 4)))
            (asked,) = wanted.ranks(name)
            assert asked == stagers[name]
            if not box.size:  # four columns for six ranks
                continue
            staged = ranks[asked][0]
            part = staged.boxes.get(name)
            held = (part.offset, part.shape) if part is not None else ((0, 0), tuple(staged.tensors[name].shape))
            assert held == (box.offset, box.shape)


def test_of_fewer_ranks_those_are_asked_that_had_the_same_place() -> None:
    with pretending(1, 6) as ranks:
        objects = layouts("fsdp")
        tree = capture(objects, ranks)
        assert list(wanted_of(head_of(tree, 12), objects, ranks).ranks("fsdp/t0")) == [2, 3]
        assert list(wanted_of(head_of(tree, 2), objects, ranks).ranks("fsdp/t0")) == [0]
        assert list(wanted_of(head_of(tree, 15), objects, ranks).ranks("fsdp/t0")) == [2, 3, 4]


def test_a_tensor_of_another_shape_is_wanted_whole() -> None:
    with pretending(1, 6) as ranks:
        objects = layouts("fsdp")
        wanted = wanted_of(head_of(capture(objects, ranks), 6), objects, ranks)
        assert list(wanted.boxes(record("fsdp/t0", (12, 4)))) == [Box((2, 0), (2, 4))]
        assert list(wanted.boxes(record("fsdp/t0", (12, 5)))) == [Box((0, 0), (12, 5))]


def test_plain_tensors_are_wanted_whole_from_the_rank_to_which_they_are_dealt() -> None:
    objects = holding({f"w{at}": torch.zeros(3) for at in range(20)})
    for rank in range(3):
        ranks = Ranks(rank, 3)
        wanted = wanted_of(head_of(capture(objects, ranks), 500), objects, ranks)
        assert len(wanted.names) == 20
        for name in wanted.names:
            assert list(wanted.ranks(name)) == [dealer_of(name, 500)]
            assert list(wanted.boxes(record(name, (3,)))) == [Box((0,), (3,))]


def test_of_an_object_that_the_program_lacks_nothing_is_wanted() -> None:
    both = [*holding(torch.zeros(1), "here"), *holding(torch.zeros(1), "gone")]
    head = head_of(capture(both, Ranks(1, 2)), 2)
    assert wanted_of(head, both[:1], Ranks(1, 2)).names == ["here"]
