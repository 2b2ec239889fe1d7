"""Putting a verified checkpoint back into live objects, or saying which tensors do not fit."""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from typing import Any

import torch

from unbroken.checkpoint import Manifest, TensorRecord, decode_tree, read_tensors
from unbroken.checkpoint.tree import tensor_names
from unbroken.errors import MismatchError, UnbrokenError
from unbroken.store import Store
from unbroken.training.capture import rebuild
from unbroken.training.objects import StateObject

_NAMED = 10
"""How many tensors an error names before it only counts."""


def load_state(store: Store, manifest: Manifest, only: Collection[str] | None = None) -> dict[str, Any]:
    """Read a checkpoint's state into host memory, every byte verified.

    Args:
        only: names of the objects to read; those that the checkpoint lacks are passed over. All by default.

    Returns:
        the state by object name, with CPU tensors.

    Raises:
        DamagedError: bytes disagree with their digests.
    """
    tensors: dict[str, torch.Tensor] = {}

    def allocate(record: TensorRecord) -> memoryview:
        tensor = torch.empty(record.shape, dtype=getattr(torch, record.dtype))
        tensors[record.name] = tensor
        return bytes_of(tensor)

    tree = manifest.state
    if only is not None:
        tree = {name: part for name, part in tree.items() if name in only}
    read_tensors(store, manifest, None if only is None else tensor_names(tree), allocate=allocate)
    state: dict[str, Any] = rebuild(decode_tree(tree), tensors)
    return state


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, which the view keeps alive."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return memoryview(bytearray())
    memory = (ctypes.c_ubyte * size).from_address(tensor.data_ptr())
    memory.owner = tensor  # type: ignore[attr-defined]
    return memoryview(memory).cast("B")


def apply_state(objects: list[StateObject], state: dict[str, Any], *, partial: bool = False) -> None:
    """Load each object's part of ``state`` into it.

    Everything is compared first, so that a program that does not fit is refused before any of its objects has changed.

    Args:
        partial: the checkpoint is allowed to lack objects (it was imported): these keep the state that they have.

    Raises:
        MismatchError: the state does not fit; names the objects or tensors.
    """
    compare_names(objects, state, partial=partial)
    held = [item for item in objects if item.name in state]
    for item in held:
        if isinstance(item.value, torch.nn.Module):
            _compare_module(item, state[item.name])
    for item in held:
        _load(item, state[item.name])


def compare_names(objects: list[StateObject], held: Collection[str], *, partial: bool, exact: bool = True) -> None:
    """Refuse objects that a checkpoint does not hold.

    Args:
        held: the names of what the checkpoint holds.
        partial: the checkpoint is allowed to lack some of the objects, not all.
        exact: refuse what the checkpoint holds in addition, too.

    Raises:
        MismatchError: names what is missing here or there.
    """
    names = [item.name for item in objects]
    missing = [name for name in names if name not in held]
    unknown = [name for name in held if name not in names] if exact else []
    if partial and len(missing) < len(names):
        missing = []
    if missing or unknown:
        raise MismatchError(
            f"the checkpoint holds {', '.join(held)}, and the program's state {', '.join(names)}", kind="objects",
            hint="Pass the same names in state={...} as the attempts before; "
            + _differences([*(f"{n} is not in the checkpoint" for n in missing),
                            *(f"{n} is only in the checkpoint" for n in unknown)]),
        )  # fmt: skip


def _compare_module(item: StateObject, saved: dict[str, Any]) -> None:
    live = item.read()
    problems = [f"{name} is not in the checkpoint" for name in live if name not in saved]
    problems += [f"{name} is only in the checkpoint" for name in saved if name not in live]
    for name in live.keys() & saved.keys():
        here, there = live[name], saved[name]
        if isinstance(here, torch.Tensor) != isinstance(there, torch.Tensor):
            problems.append(f"{name} is {type(there).__name__} in the checkpoint and {type(here).__name__} here")
        elif isinstance(here, torch.Tensor) and (here.shape, here.dtype) != (there.shape, there.dtype):
            problems.append(f"{name} is {_shape(there)} in the checkpoint and {_shape(here)} here")
    if problems:
        raise MismatchError(
            f"the checkpoint does not fit {item.name}: {_differences(sorted(problems))}", kind="tensors",
            hint="Build the model as the attempts before did, or begin a new run at another URI",
        )  # fmt: skip


def _shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _differences(problems: list[str]) -> str:
    more = len(problems) - _NAMED
    return "; ".join(problems[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _load(item: StateObject, saved: Any) -> None:
    try:
        item.load(saved)
    except UnbrokenError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise MismatchError(
            f"{item.name} refused the checkpoint's state: {type(error).__name__}: {error}", kind="refused",
            hint="Build it as the attempts before did, or begin a new run at another URI",
        ) from error  # fmt: skip
    if isinstance(item.value, torch.optim.Optimizer):
        _undo_casts(item.value, saved)


def _undo_casts(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Give optimizer state its saved element type back.

    ``Optimizer.load_state_dict`` casts floating-point state to the type of its parameter: float32 moments of bfloat16
    parameters would lose 16 bits, and the resumed run would no longer be the same.
    """
    live = [param for group in optimizer.param_groups for param in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, param in zip(numbers, live, strict=True):
        for key, value in saved["state"].get(number, {}).items():
            loaded = optimizer.state[param].get(key)
            if isinstance(value, torch.Tensor) and isinstance(loaded, torch.Tensor) and loaded.dtype != value.dtype:
                optimizer.state[param][key] = value.to(device=loaded.device)
