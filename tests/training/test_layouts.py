"""Saved by one layout and restored by another: real processes, equal to the unsharded truth, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).with_name("rank_program.py")


class World:
    """One start of a training after another, on one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starts = 0
        self.uri = str(folder / "run")

    def train(self, kind: str, count: int) -> list[dict[str, Any]]:
        """Train on from the newest checkpoint, save, and train a little more; what each rank saw."""
        self._starts += 1
        folder = self._folder / ("start" + "-" * self._starts)
        folder.mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        logs = [(folder / f"log-{rank}").open("w+") for rank in range(count)]
        processes = [
            subprocess.Popen(
                [sys.executable, PROGRAM, kind, str(rank), str(count), folder, self.uri],
                stdout=logs[rank], stderr=subprocess.STDOUT, env=environment,
            )
            for rank in range(count)
        ]  # fmt: skip
        try:
            codes = [process.wait(150) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
            for log in logs:
                log.close()
        assert codes == [0] * count, "\n".join(
            f"rank {rank}:\n{(folder / f'log-{rank}').read_text()[-3000:]}" for rank in range(count)
        )
        return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(count)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def same(here: Any, there: Any, path: str = "") -> list[str]:
    """Where two states differ by a bit."""
    if isinstance(here, torch.Tensor) and isinstance(there, torch.Tensor):
        equal = here.dtype == there.dtype and here.shape == there.shape and torch.equal(here, there)
        return [] if equal else [path]
    if hasattr(here, "tobytes"):
        return [] if here.dtype == there.dtype and here.tobytes() == there.tobytes() else [path]
    if isinstance(here, dict) and isinstance(there, dict) and here.keys() == there.keys():
        return [found for key in here for found in same(here[key], there[key], f"{path}/{key}")]
    if isinstance(here, list | tuple) and isinstance(there, list | tuple) and len(here) == len(there):
        return [
            found
            for at, (one, two) in enumerate(zip(here, there, strict=True))
            for found in same(one, two, path + f"/{at}")
        ]
    return [] if type(here) is type(there) and bool(here == there) else [path]


def demand_truth(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """What was restored on every rank is the whole state that rank 0 had when it was saved."""
    for rank, found in enumerate(after):
        assert found["step"] > 0
        assert same(before[0]["saved"], found["restored"]) == [], rank


def own_generators(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[bool]:
    return [
        rank < len(before) and same(before[rank]["saved_generators"], found["restored_generators"]) == []
        for rank, found in enumerate(after)
    ]


@pytest.mark.slow
def test_ddp_goes_on_as_fsdp_on_more_ranks_on_fewer_and_in_one_process(world):
    ddp = world.train("ddp", 2)
    fsdp = world.train("fsdp", 4)
    demand_truth(ddp, fsdp)
    assert own_generators(ddp, fsdp) == [True, True, False, False]
    torch_states = [found["restored_generators"]["rng"]["torch"].numpy().tobytes() for found in fsdp]
    assert len(set(torch_states)) == 4
    fewer = world.train("fsdp", 2)
    demand_truth(fsdp, fewer)
    assert own_generators(fsdp, fewer) == [True, True]
    plain = world.train("plain", 1)
    demand_truth(fewer, plain)
    assert own_generators(fewer, plain) == [True]


@pytest.mark.slow
def test_fsdp_with_tensor_parallelism_goes_on_to_the_bit_and_in_other_layouts(world):
    first = world.train("fsdp_tp", 4)
    staged = [(name, offset) for found in first for name, offset in found["staged"]]
    assert len(staged) == len(set(staged))
    second = world.train("fsdp_tp", 4)
    demand_truth(first, second)
    assert own_generators(first, second) == [True] * 4
    for rank in range(4):  # the step after the save, and that after the restore
        differ = same(first[rank]["later"], second[rank]["saved"])
        assert [path for path in differ if rank == 0 or "running" not in path] == []  # buffers are rank 0's
        assert same(first[rank]["later_generators"], second[rank]["saved_generators"]) == []
    tensor = world.train("tp", 2)
    demand_truth(second, tensor)


@pytest.mark.soak
def test_one_process_goes_on_as_hybrid_fsdp_and_that_as_ddp(world):
    plain = world.train("plain", 1)
    hybrid = world.train("hsdp", 4)
    demand_truth(plain, hybrid)
    assert own_generators(plain, hybrid) == [True, False, False, False]
    ddp = world.train("ddp", 2)
    demand_truth(hybrid, ddp)
