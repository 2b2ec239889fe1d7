"""What a rank loads of a checkpoint that another number of ranks wrote."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy
import pytest
import torch

from unbroken.checkpoint import Manifest
from unbroken.errors import MismatchError
from unbroken.training.capture import capture, rebuild
from unbroken.training.generators import read_generators
from unbroken.training.objects import RNG, StateObject, state_objects
from unbroken.training.rank_part import RankPart, rank_part
from unbroken.training.ranks import Ranks


class Order:
    def state_dict(self) -> dict[str, int]:
        return {"at": 3}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state


def program(*per_rank: str) -> list[StateObject]:
    state = {"model": torch.nn.Linear(1, 1), "own": torch.Generator(), "numpy": numpy.random.default_rng(1)}
    return state_objects({**state, "order": Order()}, per_rank)


def written(count: int, objects: list[StateObject]) -> Manifest:
    """The manifest of a checkpoint of so many ranks."""
    each = [capture(objects, Ranks(rank, count)) for rank in range(count)]
    return Manifest(
        format=2 if count > 1 else 1, run="run", step=7, attempt=1, nonce="", created_at=0.0, world_size=count,
        parent="", state=each[0].tree, tensors=[], packs=[], ranks=[],
        locals=[captured.local for captured in each] if count > 1 else [],
    )  # fmt: skip


def owner(part: RankPart, name: str) -> Any:
    """Whose generator a part holds: a rank's number, or "seeded"."""
    if name in part.seeded:
        return "seeded"
    tensor = part.tree[name]["torch"] if name == RNG else part.tree[name]
    return tensor.name.split("/")[0]


def parts(manifest: Manifest, count: int, *per_rank: str) -> list[RankPart]:
    return [rank_part(manifest, program(*per_rank), Ranks(rank, count)) for rank in range(count)]


def test_as_many_ranks_take_each_what_was_its_own():
    found = parts(written(3, program("order")), 3, "order")
    assert [owner(part, RNG) for part in found] == ["rank0", "rank1", "rank2"]
    assert all(part.tree["order"] == {"at": 3} and not part.seeded for part in found)


def test_more_ranks_seed_the_generators_of_those_beyond():
    found = parts(written(2, program()), 4)
    for name in (RNG, "own"):
        assert [owner(part, name) for part in found] == ["rank0", "rank1", "seeded", "seeded"]
    assert set(found[3].seeded) == {RNG, "own", "numpy"}


def test_fewer_ranks_and_one_take_the_first_ones():
    manifest = written(3, program())
    assert [owner(part, RNG) for part in parts(manifest, 2)] == ["rank0", "rank1"]
    assert [owner(part, "own") for part in parts(manifest, 1)] == ["rank0"]


def test_what_one_process_wrote_is_rank_0_s():
    found = parts(written(1, program()), 3)
    assert [owner(part, RNG) for part in found] == [RNG, "seeded", "seeded"]
    assert all("model" in part.tree and "order" in part.tree for part in found)


@pytest.mark.parametrize(("wrote", "reads"), [(2, 4), (4, 2), (3, 1), (1, 2)])
def test_an_order_of_the_data_of_other_ranks_is_refused(wrote, reads):
    manifest = written(wrote, program("order"))
    for rank in range(reads):
        with pytest.raises(MismatchError, match="order of its own") as caught:
            rank_part(manifest, program("order"), Ranks(rank, reads))
        assert caught.value.kind == "per-rank"
        assert "ResumableSampler" in caught.value.hint


def test_a_program_that_does_not_ask_for_it_may_look_at_the_rest():
    objects = [item for item in program() if item.name == "model"]
    part = rank_part(written(4, program("order")), objects, Ranks())
    assert "weight" in part.tree["model"]


def test_seeds_follow_from_run_step_rank_and_name():
    def states(rank: int, step: int) -> str:
        manifest = msgspec.structs.replace(written(2, program()), step=step)
        part = rank_part(manifest, program(), Ranks(rank, 5))
        return repr({name: str(state) for name, state in part.seeded.items()})

    assert states(3, 7) == states(3, 7)
    assert len({states(2, 7), states(3, 7), states(3, 8)}) == 3


def test_a_seeded_state_can_be_loaded_and_changes_nothing_before():
    objects, manifest = program(), written(2, program())
    before = read_generators()
    part = rank_part(manifest, objects, Ranks(3, 4))
    assert torch.equal(read_generators()["torch"], before["torch"])
    draws = []
    for _ in range(2):
        for item in objects:
            if item.generator:
                item.load(part.seeded[item.name])
        draws.append((random.random(), numpy.random.rand(), torch.rand(2).tolist()))
    assert draws[0] == draws[1]
    own = {item.name: item for item in objects}["own"].read()
    assert not torch.equal(own, torch.get_rng_state())


def test_what_is_read_is_a_tree_to_rebuild():
    part = rank_part(written(1, program()), program(), Ranks())
    tensors = capture(program()).tensors
    assert set(rebuild(part.tree, tensors)) == {"model", "own", "numpy", "order", RNG}
