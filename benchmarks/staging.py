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
    """Parameters in tensors of 64 MiB and their fused AdamW; a step computes for about ``busy`` seconds first.

    Args:
        threads: that compute: all cores, or fewer, as where a device computes and the cores are free.
    """

    def __init__(self, size: int, busy: float, threads: int) -> None:
        self._threads = threads
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

    def step(self) -> None:
        """Forward, backward, optimizer."""
        self.forward_backward()
        self.optimizer.step()

    def _compute(self, rounds: int) -> None:
        others = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        for _ in range(rounds):
            torch.mm(self._matrix, self._matrix)
        torch.set_num_threads(others)


class Staging:
    """Stages a training into an arena and gives the slot back at once."""

    def __init__(self, training: Training) -> None:
        self.objects = state_objects({"model": training.model, "optimizer": training.optimizer})
        self.area = StagingArea(say=print, clock=SYSTEM_CLOCK)
        self.area.prepare(self.objects)
        self.area.wait_until_touched(_WAIT_SECONDS)
        self._sealed = threading.Event()
        self.size = sum(tensor.nbytes for tensor in capture(self.objects).tensors.values())

    def stage(self, *, eager: bool) -> None:
        """Return when the loop may go on."""
        slot = self.area.take()
        if slot is None:
            raise RuntimeError("the slot before was not sealed")
        captured = capture(self.objects)
        self._sealed.clear()

        def done(result: HostState | Exception) -> None:
            if isinstance(result, Exception):
                print(result, file=sys.stderr)
            self.area.give_back(slot)
            self._sealed.set()

        self.area.stage(slot, captured, _described(captured), _OWNER, done, eager=eager)

    def settle(self) -> None:
        """Wait for the seal."""
        if not self._sealed.wait(_WAIT_SECONDS):
            raise RuntimeError("not sealed in time")


def _described(captured: Captured) -> Callable[[list[HostTensor], float], HostState]:
    return lambda tensors, stall: HostState(1, captured.tree, tensors, stall=stall)


class Copies:
    """The state in two other places, for copies in memory to compare with: torch's own, all of its threads."""

    def __init__(self, training: Training) -> None:
        tensors = capture(state_objects({"model": training.model, "optimizer": training.optimizer})).tensors
        self._sources = list(tensors.values())
        self._targets = [tensor.clone() for tensor in self._sources]

    def copy(self) -> None:
        for source, target in zip(self._sources, self._targets, strict=True):
            target.copy_(source)


def measure(training: Training, rounds: int) -> dict[str, list[float]]:
    """Seconds of: a step, and a copy in memory or a staging with the step after it; interleaved."""
    copies, staging = Copies(training), Staging(training)

    def timed(save: Callable[[], None]) -> tuple[float, float]:
        began = time.monotonic()
        save()
        blocked = time.monotonic() - began
        training.step()
        return time.monotonic() - began, blocked

    ways: dict[str, Callable[[], None]] = {
        "none": lambda: None,
        "memcpy": copies.copy,
        "eager": lambda: staging.stage(eager=True),
        "overlapped": lambda: staging.stage(eager=False),
    }
    seconds: dict[str, list[float]] = {}
    for round_ in range(rounds):
        names = list(ways)
        for name in names[round_ % 4 :] + names[: round_ % 4]:
            whole, blocked = timed(ways[name])
            if name in ("eager", "overlapped"):
                staging.settle()
            seconds.setdefault(name, []).append(whole)
            seconds.setdefault(f"{name} blocked", []).append(blocked)
    staging.area.close(_WAIT_SECONDS)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000_000, help="bytes of the state")
    parser.add_argument("--busy", type=float, default=0.5, help="seconds of forward and backward")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="that compute")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seconds = measure(Training(options.size, options.busy, options.threads), options.rounds)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    results = {"step seconds": middle["none"], "memcpy seconds": middle["memcpy blocked"]}
    for name in ("memcpy", "eager", "overlapped"):
        lost = middle[name] - middle["none"]
        results |= {
            f"{name}: first blocked seconds": seconds[f"{name} blocked"][0],
            f"{name}: blocked seconds": middle[f"{name} blocked"],
            f"{name}: training lost seconds": lost,
            f"{name}: training lost, in copies": lost / middle["memcpy blocked"],
        }
    for name, value in results.items():
        print(f"{name:38} {value:8.4f}")
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
