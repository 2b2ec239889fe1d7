"""A training of any number of ranks in one process: what each of them holds, with real names, shapes and layout.

torch's process group that does nothing stands for the other ranks; nothing that is measured sends a message.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from unbroken.checkpoint import HostState, HostTensor
from unbroken.training.capture import Captured, capture, dtype_name
from unbroken.training.objects import StateObject, state_objects
from unbroken.training.ownership import Cut, Part, part_of, stager_of
from unbroken.training.ranks import Ranks
from unbroken.training.restore import bytes_of

KINDS = ("fsdp", "ddp")
ROWS = (4096, 11008, 14336)
"""Of the weights, in turn, as in a language model. They are narrow: bytes are not what is measured."""
WIDTH = 8
STATES = ("exp_avg", "exp_avg_sq")


@contextlib.contextmanager
def pretending(rank: int, count: int) -> Iterator[Ranks]:
    """Be one of several ranks, for a while."""
    if count == 1:
        yield Ranks()
        return
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
    # It remembers meshes, which know their own rank, and takes those of two ranks for one.
    torch._C._clear_DTensor_sharding_propagator_cache()
    DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache.cache_clear()
    try:
        yield Ranks(rank, count)
    finally:
        dist.destroy_process_group()


def shapes_of(tensors: int) -> dict[str, tuple[int, int]]:
    """The parameters of a state of so many tensors: a quarter of them, since AdamW has three for each."""
    return {f"layers_{number}_weight": (ROWS[number % len(ROWS)], WIDTH) for number in range(tensors // 4)}


def objects_of(kind: str, ranks: Ranks, tensors: int) -> list[StateObject]:
    """Model and AdamW after its first step, and the generators, as one rank has them."""
    sharded = kind == "fsdp" and ranks.world_size > 1
    mesh = init_device_mesh("cpu", (ranks.world_size,)) if sharded else None

    def made(shape: tuple[int, int]) -> torch.Tensor:
        if mesh is None:
            return torch.zeros(shape)
        part = share_of(shape, ranks.rank, ranks.world_size)
        local = torch.zeros(part.shape)
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=(WIDTH, 1))

    model = torch.nn.Module()
    for name, shape in shapes_of(tensors).items():
        model.register_parameter(name, torch.nn.Parameter(made(shape)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        moments = {key: made((parameter.shape[0], WIDTH)) for key in STATES}
        optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
    return state_objects({"model": model, "optimizer": optimizer})


def share_of(shape: tuple[int, ...], rank: int, count: int) -> Part:
    """The rows that a rank holds under FSDP2."""
    part = part_of(shape, (count,), (rank,), (Cut(0),))
    if part is None:
        raise AssertionError("rows are neighbours")
    return part


@dataclass(frozen=True)
class Gang:
    """What all ranks stage, by the rules that each computes alone.

    Args:
        first: what rank 0 captured.
        shapes: of all tensors that are shared.
    """

    kind: str
    count: int
    first: Captured
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, kind: str, count: int, tensors: int) -> Gang:
        """Of a state of so many tensors."""
        shapes: dict[str, tuple[int, ...]] = {}
        for number, (name, shape) in enumerate(shapes_of(tensors).items()):
            shapes[f"model/{name}"] = shape
            shapes |= {f"optimizer/state/{number}/{key}": shape for key in STATES}
            shapes[f"optimizer/state/{number}/step"] = ()
        with pretending(0, count) as ranks:
            return cls(kind, count, capture(objects_of(kind, ranks, tensors), ranks), shapes)

    def state(self, rank: int, step: int) -> HostState:
        """As the agent of a rank would find it in a slot."""
        held = [self._tensor(name, part) for name, part in self.parts(rank).items()]
        own = [
            HostTensor(self._own(name, rank), dtype_name(tensor), tuple(tensor.shape), bytes_of(tensor.contiguous()))
            for name, tensor in self.first.tensors.items()
            if name.startswith("rank0/")
        ]
        local = _renamed(self.first.local, rank)
        return HostState(
            step, self.first.tree, [*held, *own], rank=rank, world_size=self.count, local=local,
            shared=self.first.shared,
        )  # fmt: skip

    def parts(self, rank: int) -> dict[str, Part]:
        """What a rank stages of what all share."""
        found = {}
        for name, shape in self.shapes.items():
            part = Part((0,) * len(shape), shape, shape)
            if self.kind == "fsdp" and shape:
                part = share_of(shape, rank, self.count)
                if part.empty:
                    continue
            elif stager_of(name, part_bytes(part), self.count) != rank:
                continue
            found[name] = part
        return found

    def check(self, rank: int, captured: Captured) -> None:
        """What is made up here is what the capture of real tensors gives on that rank.

        Raises:
            AssertionError: it is not, and what was measured means nothing.
        """
        parts = self.parts(rank)
        boxes = {name: (part.offset, part.shape) for name, part in parts.items() if not part.complete}
        there = {name: (part.offset, part.shape) for name, part in captured.boxes.items()}
        shared = {name for name in captured.tensors if not name.startswith("rank")}
        if boxes != there or shared != set(parts) or captured.shared != self.first.shared:
            raise AssertionError(f"rank {rank} of {self.count} stages something else than was made up")

    @staticmethod
    def _own(name: str, rank: int) -> str:
        return f"rank{rank}/{name.removeprefix('rank0/')}"

    @staticmethod
    def _tensor(name: str, part: Part) -> HostTensor:
        data = memoryview(bytes(part_bytes(part)))
        if name.endswith("/step"):
            data = bytes_of(torch.tensor(1.0))
        if part.complete:
            return HostTensor(name, "float32", part.shape, data)
        return HostTensor(name, "float32", part.shape, data, part.offset, part.whole)


def part_bytes(part: Part) -> int:
    """Bytes of a part, in float32."""
    return 4 * int(torch.Size(part.shape).numel())


def _renamed(tree: Any, rank: int) -> Any:
    if isinstance(tree, dict):
        return {
            key: Gang._own(value, rank) if key in ("$tensor", "$ndarray") else _renamed(value, rank)
            for key, value in tree.items()
        }
    return [_renamed(item, rank) for item in tree] if isinstance(tree, list) else tree
