"""Telling a commit whose reply was lost from one of another state at the same step."""

from __future__ import annotations

from dataclasses import replace

import pytest

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
