"""Telling a commit whose reply was lost from one of another state at the same step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.checkpoint.conftest import tensor, tensor_of
from tests.checkpoint.ranks import Gang, rank_state, rows

from unbroken.checkpoint import CheckpointWriter, HostState, HostTensor, Manifest, holds_state, load_manifest
from unbroken.journal import Journal, Origin
from unbroken.store import open_store

STATE = HostState(
    4,
    {"x": {"$tensor": "x"}, "lr": 0.5},
    [HostTensor("x", "uint8", (40,), memoryview(bytes(range(40)))), HostTensor("e", "uint8", (0,), memoryview(b""))],
)


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    origin = Origin("host", 1)
    journal = Journal.create(open_store(str(tmp_path / "run"), create=True))
    CheckpointWriter(journal, journal.claim(origin), origin).write(STATE)
    return load_manifest(journal.store, journal.state.checkpoints[-1])


def with_tensor(**changes: object) -> HostState:
    return replace(STATE, tensors=[replace(STATE.tensors[0], **changes), STATE.tensors[1]])  # type: ignore[arg-type]


def test_a_checkpoint_holds_the_state_that_it_was_made_of(manifest):
    assert holds_state(manifest, replace(STATE, began_at=9.0, stall=1.0))


@pytest.mark.parametrize(
    "other",
    [
        replace(STATE, step=5),
        replace(STATE, tree={"x": {"$tensor": "x"}, "lr": 0.25}),
        replace(STATE, tensors=STATE.tensors[:1]),
        with_tensor(name="y"),
        with_tensor(dtype="int8"),
        with_tensor(shape=(8, 5)),
        with_tensor(data=memoryview(bytes(40))),
        with_tensor(data=memoryview(bytes(range(39)))),
    ],
    ids=["step", "tree", "fewer", "name", "dtype", "shape", "bytes", "length"],
)
def test_a_checkpoint_does_not_hold_another_state(manifest, other):
    assert not holds_state(manifest, other)


class TestRanks:
    @pytest.fixture
    def states(self) -> list[HostState]:
        return self.made(tensor_of("w", "float32", (6, 4)))

    def made(self, weight: HostTensor, *, lengths: tuple[int, int] = (2, 4), step: int = 3) -> list[HostState]:
        """Of two ranks: rows of a matrix; a generator of its own with each, and a bias with the second."""
        first, second = rows(weight, *lengths)
        held = [first], [second, tensor("b", b"12345678")]
        return [rank_state(step, rank, 2, part, ["w", "b"]) for rank, part in enumerate(held)]

    @pytest.fixture
    def manifest(self, tmp_path, states: list[HostState]) -> Manifest:
        gang = Gang(open_store(str(tmp_path / "run"), create=True), 2)
        gang.commit({state.rank: writer.write(state) for writer, state in zip(gang.writers, states, strict=True)})
        return load_manifest(gang.store, gang.journal.state.checkpoints[-1])

    def test_a_checkpoint_holds_each_ranks_part(self, manifest: Manifest, states: list[HostState]) -> None:
        assert all(holds_state(manifest, state) for state in states)
        assert all(holds_state(manifest, replace(state, tree={})) for state in states)

    def test_one_ranks_part_is_not_anothers(self, manifest: Manifest, states: list[HostState]) -> None:
        first, second = states
        assert not holds_state(manifest, replace(first, rank=1))
        assert not holds_state(manifest, replace(first, rank=2))
        assert not holds_state(manifest, replace(second, rank=0))

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_checkpoint_does_not_hold_another_state_of_a_rank(
        self, manifest: Manifest, states: list[HostState], rank: int
    ) -> None:
        state, weight = states[rank], tensor_of("w", "float32", (6, 4))
        part = state.tensors[0]
        others = [
            self.made(weight, step=4)[rank],
            self.made(weight, lengths=(3, 3))[rank],
            self.made(tensor_of("w", "float32", (6, 4), seed=1))[rank],
            replace(state, world_size=3),
            replace(state, local={}),
            replace(state, tree={**state.tree, "step": 9}),
            replace(state, shared={"model": "x"}),
            *(
                replace(state, tensors=[replace(part, **change), *state.tensors[1:]])  # type: ignore[arg-type]
                for change in (
                    {"name": "v"}, {"dtype": "int32"}, {"whole": (7, 4)}, {"offset": (1, 0)},
                    {"data": memoryview(bytes(len(part.data)))},
                )
            ),
        ]  # fmt: skip
        assert [holds_state(manifest, other) for other in others] == [False] * len(others)
