"""The training that the benchmarks save: dense layers and AdamW, whose step changes every tensor that is trained."""

from __future__ import annotations

import ctypes
import math
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy
import torch
import xxhash

TENSOR_BYTES = 64 << 20
_MOMENTS = 2
_FEWEST_WITH_FROZEN = 10
_NUMPY_DRAWS = 400
"""Its state is made anew for every 312 of them."""


def layers(size: int, frozen: float = 0.0) -> tuple[int, int, int]:
    """How many layers there are, how many of them are trained, and the side of their square matrices.

    Matrices have 64 MiB: with small tensors an allocator that hands out the same memory again flatters whoever uses
    it. Only a state that is too small for three of them has smaller ones.

    Args:
        size: bytes of the state: float32 matrices, and two moments of the same size for each trained one.
        frozen: share of the layers that is not trained.
    """
    each = 1 + _MOMENTS * (1 - frozen)
    count = max(_FEWEST_WITH_FROZEN if frozen else 1, round(size / (each * TENSOR_BYTES)))
    trained = max(1, round(count * (1 - frozen)))
    length = min(TENSOR_BYTES, size // (count + _MOMENTS * trained))
    return count, trained, math.isqrt(length // 4)


class Training:
    """Layers, and the AdamW moments of those that are trained, of about ``size`` bytes together.

    Forward and backward are the three products of matrices that a dense layer costs, into memory that exists: a loop
    that asks the system for new pages in each step would drown what a save costs, and so does an optimizer with
    temporaries, for which AdamW is fused here.

    Args:
        size: bytes of the state.
        seed: of the values.
        rows: of the batch; 0: no forward and backward, the gradients are only scaled.
        frozen: share of the layers that is not trained; those are the first ones.
        device_s: seconds that a forward and backward takes on a device that leaves the cores alone; 0: there is none.
    """

    def __init__(
        self, size: int, *, seed: int, rows: int = 0, frozen: float = 0.0, device_s: float = 0.0
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        count, trained, side = layers(size, frozen)
        self.model = torch.nn.ParameterList(torch.randn(side, side) / math.sqrt(side) for _ in range(count))
        for parameter in list(self.model.parameters())[: count - trained]:
            parameter.requires_grad_(False)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in self.trained:
            parameter.grad = torch.randn_like(parameter) / side
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-3, fused=True)
        self._values = [torch.randn(rows, side) for _ in range(count + 1)]
        self._error = torch.randn(rows, side) / side
        self._passed_back = [torch.empty(rows, side) for _ in range(2)]
        self._scale = 1.0
        self._device_s = device_s
        self._from_device = [[each.grad, torch.randn_like(each) / side] for each in self.trained] if device_s else []
        self.optimizer.step()  # makes the moments

    def timed_step(self) -> float:
        """Forward, backward, and a step of the optimizer; returns the seconds they took."""
        began = time.monotonic()
        _draw()
        self.forward_backward()
        self.optimizer.step()
        return time.monotonic() - began

    def forward_backward(self) -> None:
        """Read every layer and write every gradient. Changes nothing of the state."""
        if self._device_s:
            self._wait_for_device()
            return
        # With gradients that stay the same the moments would come to rest, and need not be saved again.
        scale = 0.5 + random.random()
        change, self._scale = scale / self._scale, scale
        if not len(self._error):
            torch._foreach_mul_([each.grad for each in self.trained], change)
            return
        with torch.no_grad():
            self._error *= change
            weights = list(self.model.parameters())
            for number, weight in enumerate(weights):
                torch.mm(self._values[number], weight.T, out=self._values[number + 1])
                self._values[number + 1].tanh_()
            error, (other, spare) = self._error, self._passed_back
            for number in reversed(range(len(weights))):
                if weights[number].grad is None:
                    break  # the frozen layers come first: nothing before them needs the error
                torch.mm(error.T, self._values[number], out=weights[number].grad)
                torch.mm(error, weights[number], out=other)
                error, other, spare = other, spare, other

    def _wait_for_device(self) -> None:
        """Take the time, and leave gradients that a core need not write: at random one of two for each parameter, for
        with the same ones in each step the moments would come to rest."""
        deadline = time.monotonic() + self._device_s
        for parameter, gradients in zip(self.trained, self._from_device, strict=True):
            parameter.grad = random.choice(gradients)
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(left)

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

    @property
    def trained_size(self) -> int:
        """Bytes of the state that a step changes."""
        return self.size - sum(each.numel() * each.element_size() for each in self.model if not each.requires_grad)

    def digests(self) -> list[str]:
        """A digest of each tensor's bytes as they are now."""
        return [_digest(tensor) for tensor in self.tensors()]

    def state(self) -> dict[str, Any]:
        """What a recipe with ``torch.save`` keeps."""
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


def rows_for(size: int, seconds: float, *, frozen: float = 0.0) -> int:
    """How large a batch makes forward and backward last about so long here; 0 for 0 seconds."""
    if not seconds:
        return 0
    guess = 64
    probe = Training(size, seed=0, rows=guess, frozen=frozen)
    probe.forward_backward()
    took = statistics.median(_seconds(probe) for _ in range(3))
    return max(8, math.ceil(guess * seconds / took))


def _seconds(training: Training) -> float:
    began = time.monotonic()
    training.forward_backward()
    return time.monotonic() - began


def _draw() -> None:
    """Move every global generator on, as a training does: what did not change need not be saved again."""
    torch.rand(1)
    random.random()
    numpy.random.random(_NUMPY_DRAWS)


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.contiguous()
    memory = (ctypes.c_ubyte * (flat.numel() * flat.element_size())).from_address(flat.data_ptr())
    return xxhash.xxh3_128_hexdigest(memory)
