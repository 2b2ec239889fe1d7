"""One measured process: reads what to do from a JSON file and writes what it measured to another."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import with_torch_save
import with_unbroken
from prefault import touch_memory
from training_state import Training

_COPIES = 7
_MEMORY = {"memcpy": 1.5, "save": 2.5, "restore": 2.0}
"""States' worth of fresh memory that is used while a role is measured: copies, staging slots, a file's cached pages."""


def main() -> None:
    """``trainer.py PLAN RESULT``."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    result = _measure(plan)
    Path(sys.argv[2]).write_text(json.dumps(result))


def _measure(plan: dict[str, Any]) -> dict[str, Any]:
    role, method = plan["role"], plan["method"]
    training = Training(plan["size"], seed=plan["seed"], stepped=role != "restore")
    states = _MEMORY[role] + (plan["saves"] if role == "save" and plan["folder"] else 0)
    touch_memory(round(states * plan["size"]))
    facts = {"bytes": training.size, "torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    if role == "memcpy":
        return {**facts, **_memcpy(training)}
    if method == "unbroken":
        if role == "save":
            return {**facts, **with_unbroken.save(plan["uri"], training, plan["saves"])}
        return with_unbroken.restore(plan["uri"], training)
    how = {"tuned": method == "naive-tuned", "signed": plan["signed"]}
    if role == "save":
        return {**facts, **with_torch_save.save(plan["folder"], training, plan["saves"], **how)}
    return with_torch_save.restore(plan["folder"], training, **how)


def _memcpy(training: Training) -> dict[str, Any]:
    """Seconds to copy the state once: into fresh memory, and (median) into memory that is there already."""
    sources = list(training.tensors())
    targets = [torch.empty_like(source) for source in sources]
    seconds = []
    for _ in range(_COPIES):
        began = time.monotonic()
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)
        seconds.append(time.monotonic() - began)
    return {"fresh": seconds[0], "warm": statistics.median(seconds[1:])}


if __name__ == "__main__":
    main()
