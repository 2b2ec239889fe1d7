"""What each process does in :mod:`tests.training.test_dcp_ranks`: verb, rank, number of ranks, folder, URI."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from unbroken.dcp import Reader, Writer


class Net(torch.nn.Module):
    """Few and uneven rows, two element types, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 1)
        self.low = torch.nn.Linear(1, 7, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.low(self.down(self.norm(self.up(x))).bfloat16()).float()


class Training:
    """An FSDP2 model and its optimizer, and tensors that are cut in uncomfortable ways."""

    def __init__(self, mesh: DeviceMesh, seed: int) -> None:
        torch.manual_seed(seed)
        net = Net()
        fully_shard(net.low, mesh=mesh)
        fully_shard(net, mesh=mesh)
        self.net = net
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        self.x = {name: distribute_tensor(tensor, mesh, [place]) for name, (tensor, place) in odd(seed).items()}
        self.plain = torch.full((6,), float(seed))
        self.seed = seed

    def step(self) -> None:
        self.net(torch.arange(12.0).view(4, 3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.net, self.optimizer)
        return {
            "model": model, "optimizer": optimizer, "x": self.x, "plain": self.plain,
            "values": {"seed": self.seed, "list": [1, {"t": self.plain + 1}]},
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.net, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )  # fmt: skip


def odd(seed: int) -> dict[str, tuple[torch.Tensor, Any]]:
    torch.manual_seed(seed + 1000)
    return {
        "rows": (torch.randn(5, 2), Shard(0)),
        "columns": (torch.randn(2, 5), Shard(1)),
        "few": (torch.randn(2, 3), Shard(0)),
        "one": (torch.randn(1), Shard(0)),
        "empty": (torch.zeros(0, 3), Shard(0)),
        "empty_rows": (torch.zeros(4, 0), Shard(0)),
        "scalar": (torch.tensor(float(seed)), Replicate()),
        "alike": (torch.randn(4, 4), Replicate()),
        "fp8": (torch.randn(9).to(torch.float8_e4m3fn).view(torch.uint8), Shard(0)),
    }


def whole(value: Any) -> Any:
    """The unsharded truth; all ranks together."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


class Opaque:
    """Something that only a pickle could hold."""


def failed(state: dict[str, Any], writer: Writer, **more: Any) -> dict[int, str]:
    try:
        dcp.save(state, storage_writer=writer, **more)
    except CheckpointException as error:
        return {rank: f"{type(pair[0]).__name__}: {pair[0]}" for rank, pair in error.failures.items()}
    return {}


def save(rank: int, count: int, uri: str) -> dict[str, Any]:
    training = Training(init_device_mesh("cpu", (count,)), seed=1)
    training.step()
    writer, state = Writer(uri), training.state()
    state["loader"] = {f"dp_rank_{rank}": f"position of {rank}".encode(), "world_size": count}
    found: dict[str, Any] = {"saved": whole(state)}
    dcp.save(state, storage_writer=writer, checkpoint_id="step-10")
    bad = {**state, "opaque": {"of_rank_1": Opaque()}} if rank == 1 else state
    found["opaque"] = failed(bad, writer, checkpoint_id="step-11")
    found["steps"] = failed(state, writer, checkpoint_id=f"step-{12 + rank}")
    group = dist.new_group()  # the training's own is busy with the next step
    future = dcp.async_save(state, storage_writer=writer, checkpoint_id="step-20", process_group=group)
    training.step()  # changes what was passed
    future.result(timeout=60)
    found["later"] = whole(training.state())
    return found


def fence(rank: int, count: int, uri: str) -> dict[str, Any]:
    old, new, state = Writer(uri), Writer(uri), {"x": torch.ones(3), f"own{rank}": torch.ones(2)}
    dcp.save(state, storage_writer=old, checkpoint_id="1")
    dcp.save(state, storage_writer=new, checkpoint_id="2")
    found = {"fenced": failed(state, old, checkpoint_id="3")}
    for step in (4, 5):  # with plans that are kept from save to save
        planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
        dcp.save(state, storage_writer=new, checkpoint_id=str(step), planner=planner)
        state["x"] += step
    planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
    found["kept"] = failed(state, Writer(uri), checkpoint_id="6", planner=planner)
    assert SavePlanner._cached_save_plan
    return found


def die(rank: int, count: int, uri: str) -> dict[str, Any]:
    writer, state = Writer(uri), {"x": torch.ones(3), f"own{rank}": torch.ones(2)}
    dcp.save(state, storage_writer=writer, checkpoint_id="1")
    writer.finish = lambda **_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    state["x"] += 1
    dcp.save(state, storage_writer=writer, checkpoint_id="2")
    return {}


def load(rank: int, count: int, uri: str) -> dict[str, Any]:
    training = Training(init_device_mesh("cpu", (count,)), seed=2)
    state = training.state()
    state["values"] = {"seed": 0, "list": [0, {"t": torch.zeros(6)}]}
    state["loader"] = {"dp_rank_0": b"", "world_size": 0}
    dcp.load(state, storage_reader=Reader(uri, step=10))
    found = {"loaded": whole(state)}
    training.load(state)
    training.step()
    return found | {"next": whole({"model": training.net.state_dict()})}


def damaged(rank: int, count: int, uri: str) -> dict[str, Any]:
    """Only the tensor of rank 1 is damaged."""
    try:
        dcp.load({f"own{rank}": torch.zeros(2)}, storage_reader=Reader(uri))
    except CheckpointException as error:
        return {"failures": {rank: f"{type(pair[0]).__name__}: {pair[0]}" for rank, pair in error.failures.items()}}
    return {"failures": {}}


def main() -> None:
    verb, rank, count, folder, uri = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=count)
    found = {"save": save, "fence": fence, "die": die, "load": load, "damaged": damaged}[verb](rank, count, uri)
    torch.save(found, folder / f"found-{rank}.pt")
    dist.destroy_process_group()
    # A device mesh keeps its gloo group, and with it native threads of torch, to the end of the interpreter; on a busy
    # machine taking these down has ended a rank with SIGABRT. multiprocessing leaves its children in this way, too.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
