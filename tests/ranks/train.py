"""A training of several ranks for tests: ``train.py URI LAYOUT UNTIL EVERY OUT [DELAY]``.

LAYOUT is ``ddp`` or ``fsdp``. Each rank draws from its own generator and reads its own part of the data; every step's
loss goes to ``OUT/<rank>.txt``, and at the end a digest of the whole state to ``OUT/final.json``. The rank that the
environment names as ``FAILING`` raises in step 5.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import unbroken


def build(layout: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model: torch.nn.Module = torch.nn.Sequential(
        torch.nn.Linear(7, 30), torch.nn.BatchNorm1d(30), torch.nn.Dropout(0.2), torch.nn.Linear(30, 7)
    )
    if layout == "fsdp":
        for part in model:
            fully_shard(part)
        fully_shard(model)
    elif layout == "ddp":
        model = DistributedDataParallel(model)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def digest(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    found = hashlib.sha256()
    for tensor in bare.parameters():
        found.update(whole(tensor.detach()).contiguous().numpy().tobytes())
    for state in optimizer.state.values():
        for name in sorted(state):
            found.update(whole(state[name]).contiguous().numpy().tobytes())
    return found.hexdigest()


def main(uri: str, layout: str, until: int, every: str, out: Path, delay: float) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model, optimizer = build(layout)
    draws = torch.Generator().manual_seed(100 + rank)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "draws": draws}
    run = unbroken.Run(uri, state=state, every=every)
    torch.manual_seed(1000 + rank)
    with run, (out / f"{rank}.txt").open("a") as log:
        for step in run.steps(until=until):
            batch = torch.randn(4, 7, generator=draws)
            loss = (model(batch) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if rank == 0:
                run.log(loss=loss.item())
            log.write(f"{run.attempt} {step} {loss.item().hex()}\n")
            log.flush()
            time.sleep(delay)
            if step == 5 and os.environ.get("FAILING") == str(rank):
                raise ValueError("made to fail")
        # Not as the last thing: gloo's threads abort a process that ends while they let go of a collective's tensors.
        found = digest(model, optimizer)
    if rank == 0:
        (out / "final.json").write_text(json.dumps({"digest": found, "pid": os.getpid()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(
        sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]),
        float(sys.argv[6]) if len(sys.argv) > 6 else 0.0,
    )  # fmt: skip
