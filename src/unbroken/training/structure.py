"""Whether a checkpoint fits the objects of a program, found out before any of them changes."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch

from unbroken.checkpoint import Manifest
from unbroken.errors import MismatchError
from unbroken.training.capture import rebuild
from unbroken.training.live import is_ordinary_optimizer
from unbroken.training.objects import StateObject
from unbroken.training.rank_part import RankPart, rank_part
from unbroken.training.ranks import Ranks

_NAMED = 10
"""How many tensors an error names before it only counts."""


def compare_manifest(
    objects: list[StateObject], manifest: Manifest, part: RankPart | None = None, *, exact: bool = True
) -> None:
    """Refuse a checkpoint that does not fit, before a byte of it is read.

    Args:
        part: what of it this rank loads; by default all, as the only rank.
        exact: refuse what the checkpoint holds in addition, too.

    Raises:
        MismatchError: names objects or tensors.
    """
    part = part or rank_part(manifest, objects, Ranks())
    compare_names(objects, part.names, partial=manifest.partial, exact=exact)
    compare_structure(objects, described(manifest, part, [item.name for item in objects]))


def described(manifest: Manifest, part: RankPart, names: Collection[str]) -> dict[str, Any]:
    """The state of some objects as the manifest describes it: with tensors of one shared element, expanded."""
    tensors = {
        record.name: torch.empty((), dtype=getattr(torch, record.dtype)).expand(record.shape)
        if math.prod(record.shape)
        else torch.empty(record.shape, dtype=getattr(torch, record.dtype))
        for record in manifest.tensors
    }
    tree = {name: saved for name, saved in part.tree.items() if name in names}
    state: dict[str, Any] = rebuild(tree, tensors)
    return state


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


def compare_structure(objects: list[StateObject], state: dict[str, Any]) -> None:
    """Compare the modules, optimizers and tensors that ``state`` holds with the live ones.

    Raises:
        MismatchError: names what differs.
    """
    for item in objects:
        if item.name not in state:
            continue
        if isinstance(item.value, torch.nn.Module):
            _compare_module(item, state[item.name])
        elif isinstance(item.value, torch.optim.Optimizer):
            _compare_optimizer(item.name, item.value, state[item.name])
        elif isinstance(item.value, torch.Tensor):
            _compare_tensor(item.name, item.value, state[item.name])


def _compare_module(item: StateObject, saved: Any) -> None:
    live = item.read()
    if not isinstance(saved, dict):
        raise _refused(item.name, f"it is a module, and the checkpoint holds a {type(saved).__name__}")
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


def _compare_optimizer(name: str, optimizer: torch.optim.Optimizer, saved: Any) -> None:
    if not is_ordinary_optimizer(optimizer):
        return  # it knows itself what it can load
    live = [len(group["params"]) for group in optimizer.param_groups]
    try:
        there = [len(group["params"]) for group in saved["param_groups"]]
    except (KeyError, TypeError) as error:
        raise _refused(name, f"that holds no parameter groups ({type(error).__name__}: {error})") from error
    if live != there:
        raise _refused(name, f"it has groups of {live} parameters, and the checkpoint of {there}")


def _compare_tensor(name: str, tensor: torch.Tensor, saved: Any) -> None:
    if not isinstance(saved, torch.Tensor) or (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):
        found = _shape(saved) if isinstance(saved, torch.Tensor) else type(saved).__name__
        raise MismatchError(f"the checkpoint holds {found} for {name}, and the program {_shape(tensor)}", kind="tensor")


def _refused(name: str, reason: str) -> MismatchError:
    return MismatchError(
        f"{name} refused the checkpoint's state: {reason}", kind="refused",
        hint="Build it as the attempts before did, or begin a new run at another URI",
    )  # fmt: skip


def _shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _differences(problems: list[str]) -> str:
    more = len(problems) - _NAMED
    return "; ".join(problems[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
