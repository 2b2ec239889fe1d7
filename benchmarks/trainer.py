"""One measured process: reads what to do from a JSON file and writes what it measured to another."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from loop import Loop
from method import Place
from methods import METHODS
from prefault import touch_memory
from training_state import Training, rows_for

_COPIES = 7
_STEPS = 5
_LONGER_THAN_COPY = 2.0
_SETTLE_SECONDS = 0.3
_KEPT_FREE = 2 << 30
_MEMORY = {"probe": 1.5, "save": 2.5, "restore": 2.0}
"""States' worth of fresh memory that is used while a role is measured: copies, staging slots, a file's cached pages."""


def main() -> None:
    """``trainer.py PLAN RESULT``."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    result = {"probe": _probe, "save": _save, "restore": _restore}[plan["role"]](plan)
    Path(sys.argv[2]).write_text(json.dumps(result))


def _save(plan: dict[str, Any]) -> dict[str, Any]:
    METHODS[plan["method"]].load()  # before there is a training: one of them forks
    training = _training(plan, rows=plan["rows"], device_s=plan["device_s"])
    place = Place(plan["folder"], plan["signed"])
    saving = METHODS[plan["method"]].make(place, training)
    loop = Loop(saving, training, place, every=plan["every"], saves=plan["saves"])
    return loop.run(settle=plan["watched"])


def _restore(plan: dict[str, Any]) -> dict[str, Any]:
    METHODS[plan["method"]].load()
    training = _training(plan, rows=0)
    before = training.size
    saving = METHODS[plan["method"]].make(Place(plan["folder"], plan["signed"]), training)
    time.sleep(_SETTLE_SECONDS if plan["watched"] else 0.0)
    opened = time.monotonic()
    took = saving.restore()
    ended = time.monotonic()
    return {
        **took, "digests": training.digests(), "opened": opened, "ended": ended, "grew": training.size - before,
    }  # fmt: skip


def _probe(plan: dict[str, Any]) -> dict[str, Any]:
    """What this machine does with such a state: seconds of a copy and of a step, and the batch that suits the loop."""
    training = _training(plan, rows=0)
    fresh, warm = _memcpy(training)
    facts = {"bytes": training.size, "trained_bytes": training.trained_size, "tensors": len(list(training.tensors()))}
    del training
    busy = {"overlap": _LONGER_THAN_COPY * warm, "short": 0.0, "device": 0.0}[plan["loop"]]
    rows = rows_for(plan["size"], busy, frozen=plan["frozen"])
    device_s = _LONGER_THAN_COPY * warm if plan["loop"] == "device" else 0.0
    training = Training(plan["size"], seed=0, rows=rows, frozen=plan["frozen"], device_s=device_s)
    whole, compute = [], []
    for _ in range(_STEPS):
        whole.append(training.timed_step())
        began = time.monotonic()
        training.forward_backward()
        compute.append(time.monotonic() - began)
    return {
        **facts, "fresh": fresh, "warm": warm, "rows": rows, "device_s": device_s, "step": statistics.median(whole),
        "forward_backward": statistics.median(compute), "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }  # fmt: skip


def _training(plan: dict[str, Any], *, rows: int, device_s: float = 0.0) -> Training:
    training = Training(plan["size"], seed=plan["seed"], rows=rows, frozen=plan["frozen"], device_s=device_s)
    states = _MEMORY[plan["role"]] + (plan["saves"] if plan["role"] == "save" and plan["folder"] else 0)
    touch_memory(min(round(states * plan["size"]), psutil.virtual_memory().available - _KEPT_FREE))
    return training


def _memcpy(training: Training) -> tuple[float, float]:
    """Seconds to copy the state once: into fresh memory, and (median) into memory that is there already."""
    sources = list(training.tensors())
    targets = [torch.empty_like(source) for source in sources]
    seconds = []
    for _ in range(_COPIES):
        began = time.monotonic()
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)
        seconds.append(time.monotonic() - began)
    return seconds[0], statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
