"""Write small runs with every part of the checkpoint formats: ``python make.py FOLDER FORMAT``.

What this made for a release is kept beside it and must load for ever; it is never made anew. The content is fixed.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import OrderedDict
from typing import Any
from unittest import mock

import msgspec

from unbroken.checkpoint import (
    CheckpointWriter,
    HostState,
    HostTensor,
    RankWriter,
    Tagged,
    TensorRef,
    commit_ranks,
    encode_tree,
    load_manifest,
    load_rank_part,
)
from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.dtypes import KNOWN, item_size
from unbroken.journal import Journal, Origin
from unbroken.store import open_store
from unbroken.testing import FakeClock

STEPS = (10, 20)
LOSSES = [(step, 4.0 / step) for step in range(1, 21)]
ACCURACIES: list[tuple[int, float]] = [(10, math.nan), (20, 0.75)]


def tensors(step: int) -> list[HostTensor]:
    """One tensor of every element type; of these only the even ones changed between the two checkpoints."""
    made = []
    for place, dtype in enumerate(sorted(KNOWN)):
        shape = [(2, 3), (4,), (), (0, 2)][place % 4]
        seed = step if place % 2 == 0 else 0
        size = math.prod(shape) * item_size(dtype)
        data = bytes((seed + place * 5 + i * 3) % (2 if dtype == "bool" else 256) for i in range(size))
        made.append(HostTensor(f"model/{dtype}", dtype, shape, memoryview(data)))
    return made


def tree(step: int) -> dict[str, Any]:
    """A state with every tag."""
    return {
        "model": OrderedDict((each.name.removeprefix("model/"), TensorRef(each.name)) for each in tensors(step)),
        "optimizer": {"state": {0: {"step": float(step)}, 1: {}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]},
        "values": [
            None, True, -1, 2**53 - 1, 2**53, -(2**64), 0.1, -0.0, 5e-324, math.inf, -math.inf, complex(1, -math.inf),
            "text \u2028 \U0001f600", b"\x00\xff", {"$key": 1}, {None: 1, 2: "b", (3, "c"): {}}, {4, "d"},
            frozenset({5}), [], (), {},
        ],
        "torch": [Tagged("size", [2, 3]), Tagged("dtype", "bfloat16"), Tagged("device", "cuda:1")],
        "numpy": [Tagged("ndarray", "model/float64"), Tagged("scalar", ["float32", 0.5])],
    }  # fmt: skip


def make(uri: str) -> None:
    numbers = itertools.count(1)

    def token(size: int) -> str:
        return f"{next(numbers):0{2 * size}x}"

    with mock.patch("secrets.token_hex", token):
        clock = FakeClock(now=1_767_225_600.0)
        store = open_store(uri, create=True)
        journal = Journal.create(store, clock=clock)
        for attempt, step in enumerate(STEPS, start=1):
            clock.advance(60)
            origin = Origin("golden", attempt)
            writer = CheckpointWriter(journal, journal.claim(origin), origin, clock=clock)
            for record in journal.state.checkpoints:
                writer.continue_from(record, load_manifest(store, record))
            clock.advance(60)
            metrics = {"loss": LOSSES[:step], "accuracy": ACCURACIES[:attempt]}
            began = clock.monotonic() - 0.5
            writer.write(HostState(step, encode_tree(tree(step)), tensors(step), metrics, began, 0.25))


RANKS = 3


def held_by(rank: int, step: int) -> list[HostTensor]:
    """What a rank has: of matrices their rows, of rows of four none, one and three; the rest is dealt out."""
    held = []
    for place, whole in enumerate(tensors(step)):
        lengths = {(2, 3): (1, 0, 1), (4,): (0, 1, 3)}.get(whole.shape)
        if lengths is None:
            if place % RANKS == rank:
                held.append(whole)
            continue
        begin, row = sum(lengths[:rank]), len(whole.data) // whole.shape[0]
        data = whole.data[begin * row : (begin + lengths[rank]) * row]
        rest = whole.shape[1:]
        offset = (begin, *(0 for _ in rest))
        held.append(HostTensor(whole.name, whole.dtype, (lengths[rank], *rest), data, offset, whole.shape))
    own = bytes([rank, step, 255])
    return [*held, HostTensor(f"rank{rank}/rng/torch", "uint8", (3,), memoryview(own))]


def local(rank: int) -> dict[str, Any]:
    """What is a rank's own."""
    return {"rng": {"torch": TensorRef(f"rank{rank}/rng/torch"), "python": (rank, 2**60)}}


def rank_state(rank: int, step: int, began_at: float) -> HostState:
    shared = encode_tree(tree(step))
    metrics = {"loss": LOSSES[:step]}
    digests = {name: sha256(msgspec.json.encode(node)) for name, node in shared.items()}
    return HostState(
        step, shared, held_by(rank, step), metrics, began_at, 0.25, rank=rank, world_size=RANKS,
        local=encode_tree(local(rank)), shared=digests,
    )  # fmt: skip


def make_sharded(uri: str) -> None:
    """The same state in format 2: of three ranks, by two attempts."""
    numbers = itertools.count(1)
    with mock.patch("secrets.token_hex", lambda size: f"{next(numbers):0{2 * size}x}"):
        clock = FakeClock(now=1_767_225_600.0)
        store = open_store(uri, create=True)
        journal = Journal.create(store, clock=clock)
        for attempt, step in enumerate(STEPS, start=1):
            clock.advance(60)
            origin = Origin("golden", attempt)
            lease = journal.claim(origin)
            durable = {}
            for rank in range(RANKS):
                writer = RankWriter(journal, lease, origin, rank=rank, world_size=RANKS, clock=clock)
                for record in journal.state.checkpoints:
                    writer.continue_from(record, load_rank_part(store, record, rank))
                clock.advance(20)
                durable[rank] = writer.write(rank_state(rank, step, clock.monotonic() - 0.5))
            commit_ranks(journal, lease, origin, durable, clock=clock)


if __name__ == "__main__":
    {"1": make, "2": make_sharded}[sys.argv[2]](sys.argv[1])
