"""Comparing checkpoints of several ranks: by what they hold, whatever the layout, and each rank's own with its like."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.checkpoint.conftest import tensor, tensor_of
from tests.checkpoint.ranks import Gang, rows

from unbroken.checkpoint import HostState, HostTensor, RankDurable, TensorRef, encode_tree
from unbroken.drill.compare import Comparison, compare_runs
from unbroken.errors import DamagedError
from unbroken.journal import Journal
from unbroken.journal.events import RunFinished
from unbroken.store import open_store
from unbroken.testing import flip_bit

WEIGHT = tensor_of("model/weight", "float32", (12, 3))
BIAS = tensor_of("model/bias", "float32", (3,), seed=1)


@dataclass(frozen=True)
class Training:
    """A finished training with a checkpoint of each of some steps."""

    lengths: tuple[int, ...]
    """Rows of the weight that each rank has."""
    weight: HostTensor = WEIGHT
    steps: tuple[int, ...] = (2,)
    seeds: tuple[int, ...] = ()
    """Of each checkpoint, what the ranks' generators hold."""
    places: dict[int, int] = field(default_factory=dict)
    """How far a rank's loader is; 5 else."""
    lr: float = 0.1

    def written(self, path: Path) -> Journal:
        gang = Gang(open_store(str(path), create=True), len(self.lengths))
        for number, step in enumerate(self.steps):
            seed = self.seeds[number] if self.seeds else 7
            held = [[part] for part in rows(self.weight, *self.lengths)]
            held[-1].append(BIAS)
            states = [self._with_own(state, seed) for state in gang.states(step, held)]
            durable: dict[int, RankDurable] = {}
            for writer, state in zip(gang.writers, states, strict=True):
                durable[writer.rank] = writer.write(state)
            gang.commit(durable)
            gang.go_on()
        gang.journal.append(RunFinished(self.steps[-1]), gang.origin, gang.lease)
        return gang.journal

    def _with_own(self, state: HostState, seed: int) -> HostState:
        generator = tensor(f"rank{state.rank}/rng/torch", bytes([seed, state.rank]))
        local = {"rng": {"torch": TensorRef(generator.name)}, "loader": {"at": self.places.get(state.rank, 5)}}
        tree = {
            "model": {"weight": TensorRef(WEIGHT.name), "bias": TensorRef(BIAS.name)}, "optimizer": {"lr": self.lr},
        }  # fmt: skip
        tensors = [*(each for each in state.tensors if not each.name.startswith("rank")), generator]
        return replace(
            state, tensors=tensors, tree=encode_tree(tree), local=encode_tree(local), shared=dict.fromkeys(tree, "x")
        )


@pytest.fixture
def compared(tmp_path: Path):
    def compare(one: Training, other: Training) -> Comparison:
        return compare_runs(one.written(tmp_path / "one"), other.written(tmp_path / "other"))

    return compare


def named(found: Comparison) -> list[tuple[str, str]]:
    return [(one.group, one.name) for one in found.differences]


def changed(row: int) -> HostTensor:
    data = bytearray(WEIGHT.data)
    data[row * 12] ^= 1
    return replace(WEIGHT, data=memoryview(bytes(data)))


def test_the_same_ranks_are_compared_with_all_that_is_their_own(compared) -> None:
    found = compared(Training((5, 7)), Training((5, 7)))
    assert found.identical
    assert (found.world_sizes, found.left_out) == ([2, 2], [])
    counts = {group.name: (group.tensors, group.values, group.bytes) for group in found.groups}
    assert counts == {"model": (2, 0, 156), "optimizer": (0, 1, 0), "rng": (2, 0, 4), "loader": (0, 2, 0)}


@pytest.mark.parametrize("lengths", [(4, 4, 4), (12, 0), (1, 11)])
def test_a_tensor_is_the_same_in_whatever_slices_it_is_stored(compared, lengths: tuple[int, ...]) -> None:
    found = compared(Training((5, 7)), Training(lengths))
    assert found.identical
    assert found.tensors == (2 if len(lengths) == 3 else 4)


def test_what_is_each_ranks_own_is_left_out_of_other_numbers_of_ranks_and_that_is_said(compared) -> None:
    found = compared(Training((5, 7), places={1: 6}), Training((4, 4, 4), weight=changed(11), lr=0.2))
    assert (found.world_sizes, found.left_out) == ([2, 3], ["loader", "rng"])
    assert sorted(named(found)) == [("model", "weight"), ("optimizer", "lr")]
    assert [group.name for group in found.groups] == ["model", "optimizer"]


def test_one_bit_in_any_slice_is_a_difference_at_its_place_in_the_whole(compared) -> None:
    found = compared(Training((5, 7)), Training((5, 7), weight=changed(6)))
    assert named(found) == [("model", "weight")]
    assert "1 of 144 bytes differ, the first is byte 72" in found.differences[0].text


def test_one_ranks_own_value_is_a_difference_that_names_the_rank(compared) -> None:
    found = compared(Training((5, 7)), Training((5, 7), places={1: 6}))
    assert [(one.group, one.name, one.text) for one in found.differences] == [("loader", "rank1/at", "5 and 6")]


def test_generators_of_ranks_that_nobody_seeded_or_used_are_no_difference(compared) -> None:
    found = compared(Training((5, 7), steps=(1, 2), seeds=(1, 1)), Training((5, 7), steps=(1, 2), seeds=(2, 2)))
    assert found.identical
    assert found.unseeded == ["rank0/torch", "rank1/torch"]


def test_a_generator_of_a_rank_that_moved_is_a_difference(compared) -> None:
    found = compared(Training((5, 7), steps=(1, 2), seeds=(1, 1)), Training((5, 7), steps=(1, 2), seeds=(2, 3)))
    assert named(found) == [("rng", "rank0/torch"), ("rng", "rank1/torch")]
    assert found.unseeded == []


def test_damage_in_one_ranks_slice_is_never_compared(tmp_path: Path) -> None:
    journal = Training((5, 7)).written(tmp_path / "one")
    (pack,) = [info.key for info in journal.store.list("packs") if "/2-1-" in info.key]
    flip_bit(journal.store, pack, -8)
    with pytest.raises(DamagedError, match="model/"):
        compare_runs(journal, journal)


def test_one_rank_compares_with_many(tmp_path: Path, run_writer) -> None:
    single = run_writer(str(tmp_path / "single"))
    values = {"rng": {"python": 1}, "optimizer": {"lr": 0.1}, "loader": {"at": 9}}
    floats = {each.name: list(each.data.cast("f")) for each in (WEIGHT, BIAS)}
    single.commit(2, floats, values)
    single.finish(2)
    found = compare_runs(single.journal, Training((5, 7)).written(tmp_path / "many"))
    assert (found.world_sizes, found.left_out) == ([1, 2], ["loader", "rng"])
    # The one wrote the matrix as a list: its form differs, and nothing else.
    assert [(one.name, one.text) for one in found.differences if one.name != ""] == [
        ("weight", "float32[36] and float32[12, 3]")
    ]
