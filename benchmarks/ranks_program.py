"""What each rank does in ``ranks.py``: train a state of so many bytes, save it several times, say what that took."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from unbroken import Run

BLOCK = 64 * 2**20
"""Bytes of a tensor of the state, of all ranks together."""
WARM = 10
"""Steps before the first save."""
AWAY = 0.1
"""Seconds of a step that another processor works in a real training; then the optimizer's step changes everything."""


def parameters(size: int, layout: str) -> list[torch.nn.Parameter]:
    """A third of the state: the optimizer holds two more of each."""
    count, rows = max(1, size // (3 * BLOCK)), BLOCK // 4 // 1024
    tensors = [torch.full((rows, 1024), float(number + 1)) for number in range(count)]
    if layout == "sharded":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        tensors = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in tensors]
    return [torch.nn.Parameter(tensor) for tensor in tensors]


def main() -> None:
    uri, layout, size, every, saves, out = sys.argv[1:]
    dist.init_process_group("gloo")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.get_world_size()))
    model = torch.nn.Module()
    for number, each in enumerate(parameters(int(size), layout)):
        model.register_parameter(f"p{number}", each)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    period, began = int(every), time.monotonic()
    stalls: dict[int, float] = {}
    boundaries: dict[int, float] = {}
    ended: dict[int, float] = {}
    with Run(uri, every=period, state={"model": model, "optimizer": optimizer}) as run:
        for step in run.steps(until=period * int(saves) + period - 1):
            began = time.monotonic()
            if step in ended:
                stalls[step] = began - ended[step]
            time.sleep(AWAY)
            for each in model.parameters():
                each.grad = torch.ones_like(each) if each.grad is None else each.grad
            optimizer.step()
            ended[step + 1], boundaries[step + 1] = time.monotonic(), time.time()
    due = [period * number for number in range(1, int(saves) + 1)]
    lengths = {step: ended[step] - ended[step - 1] for step in ended if step - 1 in ended}
    calm = statistics.median(lengths[step] for save in due for step in range(save - period // 3, save) if step > 1)
    found = {
        "stall": [stalls[step] for step in due],
        "lost": [sum(lengths[step + later] - calm for later in range(1, period)) for step in due],
        "boundary": {step: boundaries[step] for step in due},
        "calm": calm,
    }
    Path(out, f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
