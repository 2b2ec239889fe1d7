"""What may be copied while the training goes on, and the guard that keeps an optimizer from changing it meanwhile."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from unbroken.errors import UnbrokenError
from unbroken.training.capture import memory_key
from unbroken.training.objects import StateObject
from unbroken.training.ownership import stager_of
from unbroken.training.ranks import Ranks
from unbroken.training.sharding import held_part, is_sharded, local_of, memory_of, stages

WORTH_DEFERRING = 64 << 10
"""Bytes; a smaller tensor is copied in less time than it takes to arrange for later."""
_HOOKED = Optimizer.profile_hook_step(lambda *_: None).__code__
"""Of what torch puts around ``step``: it calls the hooks. The mark ``step.hooked`` is no proof of it."""


class SnapshotSpoiled(UnbrokenError):  # noqa: N818 - said of the snapshot; nothing in the program is wrong
    """A tensor was changed, by something else than the optimizer's step, while it was copied: kind ``"spoiled"``."""


def find_optimizers(objects: Iterable[StateObject]) -> tuple[list[Optimizer], str]:
    """The optimizers of a state, and why their steps cannot be waited for; "" where all of them call torch's hooks."""
    found = []
    for item in objects:
        if isinstance(item.value, Optimizer) and _is_hooked(item.value):
            found.append(item.value)
        elif isinstance(item.value, Optimizer) or _steps_parameters(item.value):
            kind = type(item.value)
            return [], f"state[{item.name!r}], a {kind.__module__}.{kind.__qualname__}, calls no hook before its step"
    return found, ""


def deferrable(
    tensors: dict[str, torch.Tensor], optimizers: Iterable[Optimizer], *, smallest: int = WORTH_DEFERRING
) -> dict[str, torch.Tensor]:
    """Those of ``tensors`` that only a step of ``optimizers`` changes, by name, as of this moment.

    Args:
        tensors: the captured state; of sharded tensors this rank's part.
        optimizers: each of them hooked.
        smallest: bytes from which on a tensor is worth it.
    """
    owned = {memory_key(local_of(tensor)) for optimizer in optimizers for tensor in _owned(optimizer)}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.numel() * tensor.element_size() >= smallest and _is_plain(tensor) and memory_key(tensor) in owned
    }


def watched(tensors: Mapping[str, torch.Tensor], optimizers: Iterable[Optimizer]) -> dict[str, Sequence[torch.Tensor]]:
    """By the names of parts of sharded tensors, the live tensors whose version counters tell of a change.

    What is done to a sharded tensor moves its own counter, what is done to its part that of the part; what was captured
    shares neither.
    """
    names = {memory_key(tensor): name for name, tensor in tensors.items()}
    return {
        name: (tensor, memory_of(tensor))
        for optimizer in optimizers
        for tensor in _owned(optimizer)
        if is_sharded(tensor) and (name := names.get(memory_key(local_of(tensor)))) is not None
    }


class Versions:
    """Whether tensors were changed in place since this was made, or their memory exchanged, as happens where one is
    sent to another process. The first look decides.

    Args:
        tensors: by name.
        beside: others, by the same names, whose counters tell of the same memory; see :func:`watched`.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], beside: Mapping[str, Sequence[torch.Tensor]] | None = None
    ) -> None:
        looked_at = [
            (name, each) for name, tensor in tensors.items() for each in (tensor, *(beside or {}).get(name, ()))
        ]
        self._seen = [(name, tensor, _version(tensor)) for name, tensor in looked_at]
        self._lock = threading.Lock()
        self._moved: str | None = None

    def moved(self) -> str:
        """The name of a tensor that had been changed when this was called first; "" for none."""
        with self._lock:
            if self._moved is None:
                self._moved = next((name for name, tensor, was in self._seen if _version(tensor) != was), "")
            return self._moved


class StepGuard:
    """Lets no optimizer of this process step while something is being copied. One that it forks is none of our concern:
    what that changes is memory of its own.

    Args:
        hold: called in the thread that is about to step; returns when it may.
    """

    def __init__(self, hold: Callable[[], None]) -> None:
        self._hold = hold
        self._process = os.getpid()
        self._handle = register_optimizer_step_pre_hook(self._before_step)

    def close(self) -> None:
        """Take the hook away."""
        self._handle.remove()

    def _before_step(self, *_: Any) -> None:
        if os.getpid() == self._process:
            self._hold()

    # torch.compile must call this each time, and not what it did when it was compiled.
    _before_step._torchdynamo_disable = True  # type: ignore[attr-defined]


def expected_growth(objects: Iterable[StateObject], ranks: Ranks | None = None) -> int:
    """Bytes that the optimizers' state will have and has not yet, before the first step; of what this rank stages."""
    total = 0
    for item in objects:
        if isinstance(item.value, Optimizer):
            numbers = iter(range(sum(len(group["params"]) for group in item.value.param_groups)))
            for group in item.value.param_groups:
                for parameter, number in zip(group["params"], numbers, strict=False):
                    if parameter.requires_grad and not item.value.state.get(parameter):
                        names = [f"{item.name}/state/{number}/{key}" for key in _like_each_parameter(group)]
                        total += sum(_staged_bytes(name, parameter, ranks or Ranks()) for name in names)
    return total


def _like_each_parameter(group: dict[str, Any]) -> list[str]:
    """The keys of what an optimizer will hold of the size of each parameter."""
    if "betas" in group:
        return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group.get("amsgrad") else [])]
    return ["momentum_buffer"] if group.get("momentum") else []


def _staged_bytes(name: str, parameter: torch.Tensor, ranks: Ranks) -> int:
    """Of a tensor of this name and like the parameter, what this rank would stage."""
    size = parameter.numel() * parameter.element_size()
    if ranks.world_size > 1:
        if is_sharded(parameter):
            part = held_part(parameter, name)
            return math.prod(part.shape) * parameter.element_size() if stages(name, parameter, name) else 0
        if stager_of(name, size, ranks.world_size) != ranks.rank:
            return 0
    return size


def _is_hooked(optimizer: Optimizer) -> bool:
    """Whether ``optimizer.step()`` calls torch's own wrapper first, as only then nothing is changed before the hook."""
    step: Any = optimizer.step
    step = getattr(step, "__func__", step)
    while getattr(step, "_wrapped_by_lr_sched", False) and hasattr(step, "__wrapped__"):  # it counts calls
        step = step.__wrapped__
    return getattr(step, "__code__", None) is _HOOKED


def _steps_parameters(value: object) -> bool:
    """Whether it behaves as an optimizer, or wraps one."""
    if hasattr(value, "param_groups") and callable(getattr(value, "step", None)):
        return True
    # A scheduler has an optimizer, too, and changes nothing but its numbers.
    scheduler = isinstance(value, torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau)
    return not scheduler and isinstance(getattr(value, "optimizer", None), Optimizer)


def _owned(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    """Parameters, and the tensors of its state."""
    for group in optimizer.param_groups:
        if not (group.get("capturable") and any(p.is_cuda for p in group["params"])):
            # A step inside a replayed CUDA graph calls no hook.
            for parameter in group["params"]:
                yield parameter
                yield from _tensors(optimizer.state.get(parameter))


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor._version, local_of(tensor).data_ptr()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is memory of its own kind, in row-major order, with a version counter."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type in ("cpu", "cuda")
        and tensor.is_contiguous()
        and not tensor.is_inference()
    )
