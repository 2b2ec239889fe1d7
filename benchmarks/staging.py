"""What staging alone costs a training: overlapped and eager, as copies of the state in memory. Nothing is uploaded."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from unbroken.checkpoint import HostState, HostTensor
from unbroken.clock import SYSTEM_CLOCK
from unbroken.link.arena import SlotOwner
from unbroken.training.capture import Captured, capture
from unbroken.training.objects import state_objects
from unbroken.training.staging import StagingArea

_TENSOR_BYTES = 64 << 20
_STATES = 3  # each parameter has two moments of its size
_OWNER = SlotOwner("file:///benchmark", 1, "benchmark")
_WAIT_SECONDS = 60.0


class Training:
    """Parameters in tensors of 64 MiB and their fused AdamW; a step computes for about ``busy`` seconds first."""

    def __init__(self, size: int, busy: float) -> None:
        length = min(_TENSOR_BYTES, size // _STATES)
        count = max(1, round(size / (_STATES * length)))
        self.model = torch.nn.ParameterList(torch.randn(length // 4) for _ in range(count))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self._matrix = torch.randn(512, 512)
        began = time.monotonic()
        self._compute(20)
        self._rounds = max(1, round(busy / (time.monotonic() - began) * 20))

    def forward_backward(self) -> None:
        """Matrix products, as most trainings spend their time on: little memory is read."""
        self._compute(self._rounds)

    def step(self) -> float:
        """Seconds of one step: forward, backward, optimizer."""
        began = time.monotonic()
        self.forward_backward()
        self.optimizer.step()
        return time.monotonic() - began

    def _compute(self, rounds: int) -> None:
        for _ in range(rounds):
            torch.mm(self._matrix, self._matrix)


class Staging:
    """Stages a training into an arena and gives the slot back at once."""

    def __init__(self, training: Training, *, overlap: bool) -> None:
        self.objects = state_objects({"model": training.model, "optimizer": training.optimizer})
        self._area = StagingArea(overlap=overlap, say=print, clock=SYSTEM_CLOCK)
        self._area.prepare(self.objects)
        self._area.wait_until_touched(_WAIT_SECONDS)
        self._sealed = threading.Event()
        self.size = sum(tensor.nbytes for tensor in capture(self.objects).tensors.values())

    def stage(self) -> float:
        """Seconds until the loop may go on."""
        began = time.monotonic()
        slot = self._area.take()
        if slot is None:
            raise RuntimeError("the slot before was not sealed")
        captured = capture(self.objects)
        self._sealed.clear()

        def done(result: HostState | Exception) -> None:
            if isinstance(result, Exception):
                print(result, file=sys.stderr)
            self._area.give_back(slot)
            self._sealed.set()

        self._area.stage(slot, captured, _described(captured), _OWNER, done)
        return time.monotonic() - began

    def settle(self) -> None:
        """Wait for the seal."""
        if not self._sealed.wait(_WAIT_SECONDS):
            raise RuntimeError("not sealed in time")

    def close(self) -> None:
        self._area.close(_WAIT_SECONDS)


def _described(captured: Captured) -> Callable[[list[HostTensor], float], HostState]:
    return lambda tensors, stall: HostState(1, captured.tree, tensors, stall=stall)


def memcpy_seconds(size: int) -> float:
    """One copy of ``size`` bytes between warm memories with torch's threads."""
    source, target = torch.ones(size // 4), torch.ones(size // 4)
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        target.copy_(source)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def lost(training: Training, staging: Staging, steps: int) -> tuple[float, float]:
    """Seconds that a save costs a training, all in; and for how many of them the loop stood still in the save."""
    plain, saved, blocked = [], [], []
    training.step()
    for _ in range(steps):
        plain.append(training.step())
        stalled = staging.stage()
        blocked.append(stalled)
        saved.append(stalled + training.step())
        staging.settle()
    return statistics.median(saved) - statistics.median(plain), statistics.median(blocked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000_000, help="bytes of the state")
    parser.add_argument("--busy", type=float, default=1.0, help="seconds of forward and backward")
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    training = Training(options.size, options.busy)
    results: dict[str, float] = {}
    for name, overlap in (("overlapped", True), ("eager", False)):
        staging = Staging(training, overlap=overlap)
        copy = memcpy_seconds(staging.size)
        first = staging.stage()
        training.step()
        staging.settle()
        all_in, blocked = lost(training, staging, options.steps)
        staging.close()
        results |= {
            f"{name} memcpy seconds": copy, f"{name} first blocked seconds": first, f"{name} blocked seconds": blocked,
            f"{name} lost seconds": all_in, f"{name} lost in copies": all_in / copy,
        }  # fmt: skip
    for name, value in results.items():
        print(f"{name:32} {value:8.3f}")
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
