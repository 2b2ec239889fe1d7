"""The training that the benchmarks save: a model and AdamW, whose step changes every tensor."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
import xxhash

TENSOR_BYTES = 64 << 20
_STATES = 3  # each parameter has two moments of its size


def tensor_bytes(size: int) -> tuple[int, int]:
    """How many parameters, and how many bytes each tensor has, for a state of about ``size`` bytes.

    Tensors have 64 MiB: with small ones an allocator that hands out the same memory again flatters whoever uses it.
    Only a state that is smaller than three of them has smaller ones.
    """
    if size < _STATES * TENSOR_BYTES:
        return 1, size // _STATES // 4 * 4
    return round(size / (_STATES * TENSOR_BYTES)), TENSOR_BYTES


class Training:
    """Parameters, and their AdamW moments, of about ``size`` bytes together.

    Args:
        size: bytes of the state.
        seed: of the values.
        stepped: whether to take the first step, which makes the moments. A program that resumes has none yet.
    """

    def __init__(self, size: int, *, seed: int, stepped: bool) -> None:
        torch.manual_seed(seed)
        count, length = tensor_bytes(size)
        self.model = torch.nn.ParameterList(torch.randn(length // 4) for _ in range(count))
        # Fused: a step without temporaries, whose page faults would drown what a save costs.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.newest_digests: list[str] = []
        """Of the tensors after the last timed step."""
        if stepped:
            for parameter in self.model.parameters():
                parameter.grad = torch.randn_like(parameter)
            self.step()

    def step(self) -> None:
        """One optimizer step: every parameter and every moment changes, in place."""
        self.optimizer.step()

    def baseline(self, steps: int) -> float:
        """Mean seconds of a step while nothing is saved."""
        self.timed_step()  # the first one pays for what it finds cold
        return statistics.mean([self.timed_step() for _ in range(steps)])

    def timed_step(self) -> float:
        """Do a step and keep its digests, all of it the loop's own work; returns the seconds it took."""
        began = time.monotonic()
        self.step()
        self.newest_digests = self.digests()
        return time.monotonic() - began

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor of the state, in an order that is always the same."""
        for parameter in self.model.parameters():
            yield parameter.detach()
            moments: dict[str, torch.Tensor] = self.optimizer.state.get(parameter, {})
            yield from (moments[name] for name in sorted(moments))

    @property
    def size(self) -> int:
        """Bytes of the state."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def digests(self) -> list[str]:
        """A digest of each tensor's bytes as they are now."""
        return [_digest(tensor) for tensor in self.tensors()]

    def state(self) -> dict[str, Any]:
        """What the naive recipe hands to ``torch.save``."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.contiguous()
    memory = (ctypes.c_ubyte * (flat.numel() * flat.element_size())).from_address(flat.data_ptr())
    return xxhash.xxh3_128_hexdigest(memory)
