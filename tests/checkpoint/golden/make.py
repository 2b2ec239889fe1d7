"""Write a small run with every part of the checkpoint format: ``python make.py FOLDER``.

What this made for a release is kept beside it and must load for ever; it is never made anew. The content is fixed.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import OrderedDict
from typing import Any
from unittest import mock

from unbroken.checkpoint import (
    CheckpointWriter,
    HostState,
    HostTensor,
    Tagged,
    TensorRef,
    encode_tree,
    load_manifest,
)
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


if __name__ == "__main__":
    make(sys.argv[1])
