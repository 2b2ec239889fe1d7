"""A training whose number of ranks changes: ``elastic.py URI UNTIL EVERY OUT DELAY``.

Each rank writes attempt, step, world size, loss and sample numbers of every step to ``OUT/<rank>.txt``; the last
weights go to ``OUT/weights.json``. ``model``, ``optimizer_of`` and ``loss_of`` serve the reference in the test as well.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import unbroken
from unbroken.data import ResumableSampler

SAMPLES, BATCH, SEED = 101, 4, 3


def dataset() -> torch.Tensor:
    return torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(1))


def model() -> torch.nn.Module:
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(5, 20), torch.nn.Tanh(), torch.nn.Linear(20, 5))


def optimizer_of(trained: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained.parameters(), lr=1e-2)


def loss_of(trained: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (trained(batch) - batch).square().mean()


def main(uri: str, until: int, every: str, out: Path, delay: float) -> None:
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    data, bare = dataset(), model()
    trained, optimizer = DistributedDataParallel(bare), optimizer_of(bare)
    sampler = ResumableSampler(SAMPLES, batch_size=BATCH, seed=SEED)
    state = {"model": trained, "optimizer": optimizer, "data": sampler}
    with unbroken.Run(uri, state=state, every=every) as run, (out / f"{rank}.txt").open("a") as log:
        numbers = sampler.indices()
        for step in run.steps(until=until):
            taken = next(numbers)
            loss = loss_of(trained, data[taken])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log.write(json.dumps([run.attempt, step, count, loss.item(), taken]) + "\n")
            log.flush()
            # Slow until the last node has come, and slowest while one is alone: another needs time to start.
            time.sleep(5 * delay if count == 1 else delay if run.attempt == 1 else 0.0)
    if rank == 0:
        (out / "weights.json").write_text(json.dumps([each.tolist() for each in bare.parameters()]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), float(sys.argv[5]))
