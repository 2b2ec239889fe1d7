"""What each process of a training of several ranks does in the tests of :mod:`tests.training.test_layouts`.

Run as a program: kind of layout, rank, number of ranks, folder for all of them, URI, what to do. What ranks must do
without each other (capture, restore) they do one after another: whoever sent or awaited a message there would wait for
ranks that have not begun, until the test's deadline.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from unbroken.checkpoint import (
    CheckpointWriter,
    HostState,
    HostTensor,
    RankWriter,
    commit_ranks,
    find_rank_records,
    restore_newest,
)
from unbroken.clock import SYSTEM_CLOCK
from unbroken.journal import Journal, Origin
from unbroken.journal.journal import Lease
from unbroken.link.arena import SlotOwner, read_slot
from unbroken.store import open_store
from unbroken.training.capture import capture
from unbroken.training.in_place import InPlaceRestore
from unbroken.training.objects import StateObject, state_objects
from unbroken.training.ranks import Ranks
from unbroken.training.staging import StagingArea

STEPS = 2
_SECONDS = 90.0


class Net(torch.nn.Module):
    """Weights of uneven sizes, tied, frozen, of two element types; and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.up = torch.nn.Linear(4, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.down = torch.nn.Linear(8, 4)
        self.odd = torch.nn.Linear(4, 3)
        self.one = torch.nn.Linear(3, 1)
        self.low = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
        self.scale = torch.nn.Parameter(torch.full((4,), 0.5), requires_grad=False)
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        hidden = hidden + self.down(self.norm(self.up(hidden)).relu()) * self.scale
        hidden = hidden + self.low(hidden.to(torch.bfloat16)).float()
        return self.head(hidden).logsumexp(-1).mean() + self.one(self.odd(hidden).tanh()).square().mean()


class Training:
    """A model laid out in some way, its optimizer, and a generator of each rank's own."""

    def __init__(self, kind: str, ranks: Ranks, seed: int) -> None:
        self.ranks = ranks
        torch.manual_seed(seed)
        self.net = Net()
        self.data = ranks.rank
        self.model = self._lay_out(kind)
        parameters = self.net.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=0.05, foreach=False, amsgrad=True)
        torch.manual_seed(seed + 100 + self.data)
        self.own = torch.Generator().manual_seed(seed + ranks.rank)
        state = {"model": self.model, "optimizer": self.optimizer, "own": self.own}
        self.objects: list[StateObject] = state_objects(state)

    def _lay_out(self, kind: str) -> torch.nn.Module:
        net, count = self.net, self.ranks.world_size
        # The norm between the two knows nothing of ranks: it gets all columns, and gives all of them.
        plan = {"up": ColwiseParallel(output_layouts=Replicate()), "down": RowwiseParallel(input_layouts=Replicate())}
        match kind:
            case "plain":
                return net
            case "ddp":
                return torch.nn.parallel.DistributedDataParallel(net)
            case "fsdp":
                _shard(net, init_device_mesh("cpu", (count,)))
            case "hsdp":
                _shard(net, init_device_mesh("cpu", (2, count // 2), mesh_dim_names=("replicate", "shard")))
            case "tp":
                self.data = 0
                parallelize_module(net, init_device_mesh("cpu", (count,)), plan)
            case "fsdp_tp":
                mesh = init_device_mesh("cpu", (2, count // 2), mesh_dim_names=("data", "tensor"))
                self.data = mesh.get_local_rank("data")
                parallelize_module(net, mesh["tensor"], plan)
                _shard(net, mesh["data"])
        return net

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.model(torch.randint(0, 7, (5,)))
        loss.backward()
        self.optimizer.step()
        torch.rand(1, generator=self.own)
        return float(loss)

    def whole(self) -> dict[str, Any]:
        """The unsharded truth; all ranks together. Buffers are those of rank 0."""
        state = {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        return _map(state, lambda each: (each.full_tensor() if isinstance(each, DTensor) else each).detach().clone())

    def generators(self) -> dict[str, Any]:
        return {item.name: _map(item.read(), torch.clone) for item in self.objects if item.generator}


def _shard(net: Net, mesh: Any) -> None:
    fully_shard(net.low, mesh=mesh)
    fully_shard(net, mesh=mesh)


def _map(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(item, change) for item in value)
    return value


class Turns:
    """Lets ranks do things one after another, by files."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder = folder
        self._ranks = ranks

    @contextlib.contextmanager
    def mine(self, what: str) -> Iterator[None]:
        if self._ranks.rank:
            self.wait(self._folder / f"{what}-{self._ranks.rank - 1}")
        yield
        (self._folder / f"{what}-{self._ranks.rank}").touch()
        self.wait(self._folder / f"{what}-{self._ranks.world_size - 1}")

    @staticmethod
    def wait(path: Path) -> None:
        deadline = time.monotonic() + _SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path.name} did not come")
            time.sleep(0.005)


def restore(training: Training, uri: str) -> int:
    """By this rank alone."""
    journal = Journal.open(open_store(uri))
    with InPlaceRestore(journal.store, journal.state, training.objects, ranks=training.ranks) as work:
        found = restore_newest(
            journal.store, journal.state, work.load, on_damaged=_raise, read_manifest=work.read_manifest
        )
        if found is None:
            return 0
        record, manifest, state = found
        work.apply(manifest, state)
    return record.step


def _raise(_: object, error: Exception) -> None:
    raise error


def stage(training: Training, step: int, uri: str, then: Callable[[], object]) -> HostState:
    """What an agent would read in the slot; ``then`` is done while copies are under way."""
    owner, outcome = SlotOwner(uri, 1, "claim"), queue.SimpleQueue[HostState | Exception]()
    area = StagingArea(say=print, clock=SYSTEM_CLOCK, worth_deferring=0, ranks=training.ranks)
    area.prepare(training.objects)
    captured = capture(training.objects, training.ranks)

    def state(tensors: list[HostTensor], stall: float) -> HostState:
        return HostState(
            step, captured.tree, tensors, stall=stall, rank=captured.ranks.rank,
            world_size=captured.ranks.world_size, local=captured.local, shared=captured.shared,
        )  # fmt: skip

    slot = area.take()
    assert slot is not None
    descriptor = os.dup(slot.descriptor)
    area.stage(slot, captured, state, owner, outcome.put)
    then()
    staged = outcome.get(timeout=_SECONDS)
    assert isinstance(staged, HostState), staged
    area.close(_SECONDS)
    found = read_slot(descriptor)
    os.close(descriptor)
    assert found is not None
    assert found[0] == owner
    return found[1]


def save(training: Training, state: HostState, uri: str, turns: Turns) -> None:
    """Make this rank's part durable; rank 0 commits."""
    origin, ranks = Origin("host", os.getpid()), training.ranks
    journal = Journal.create(open_store(uri, create=True))
    if ranks.world_size == 1:
        CheckpointWriter(journal, journal.claim(origin), origin).write(state)
        return
    shared: list[Any] = [journal.claim(origin)] if ranks.rank == 0 else [None]
    dist.broadcast_object_list(shared)
    lease: Lease = shared[0]
    journal = Journal.create(open_store(uri))
    with turns.mine(f"written-{state.step}"):
        RankWriter(journal, lease, origin, rank=ranks.rank, world_size=ranks.world_size).write(state)
    if ranks.rank == 0:
        found = find_rank_records(journal.store, lease.attempt, state.step, ranks.world_size, {})
        commit_ranks(journal, lease, origin, found)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("kind", "rank", "count", "folder", "uri"):
        parser.add_argument(name)
    given = parser.parse_args()
    # Before the test gives up: the log then says where each rank stood.
    faulthandler.dump_traceback_later(_SECONDS + 30, exit=True)
    ranks = Ranks(int(given.rank), int(given.count))
    folder = Path(given.folder)
    if ranks.world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/group", rank=ranks.rank, world_size=ranks.world_size,
            timeout=timedelta(seconds=_SECONDS),
        )  # fmt: skip
    turns = Turns(folder, ranks)
    training = Training(given.kind, ranks, seed=len(folder.name))
    with turns.mine("restored"):
        done = restore(training, given.uri) if Path(given.uri).exists() else 0
    found = {"step": done, "restored": training.whole(), "restored_generators": training.generators()}
    for _ in range(STEPS):
        training.step()
    found |= {"saved": training.whole(), "saved_generators": training.generators()}
    with turns.mine("captured"):
        capture(training.objects, ranks)
    state = stage(training, done + STEPS, given.uri, training.step)
    save(training, state, given.uri, turns)
    for _ in range(STEPS - 1):
        training.step()
    found |= {
        "later": training.whole(),
        "later_generators": training.generators(),
        "staged": [(each.name, each.offset) for each in state.tensors],
    }
    torch.save(found, folder / f"found-{ranks.rank}.pt")
    # Not by way of the interpreter's end: how gloo's threads part there is not what is tested.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
