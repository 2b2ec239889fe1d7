"""A state in host memory on its way to the store, and what must be true of it before a byte is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unbroken.checkpoint.dtypes import KNOWN, item_size
from unbroken.checkpoint.metrics import Metrics
from unbroken.checkpoint.packs import RESERVED_NAME, HostTensor
from unbroken.checkpoint.tree import tensor_names
from unbroken.errors import ConfigError


@dataclass(frozen=True)
class HostState:
    """The state of a run after ``step``, in host memory.

    Args:
        step: completed optimizer steps.
        tree: the encoded state tree.
        tensors: every tensor that the tree names, once.
        metrics: what was logged; steps that the parent checkpoint holds already are left out, and later ones than
            ``step``.
        began_at: monotonic seconds at the step boundary.
        stall: seconds for which the loop stood still.
        partial: it was imported, and is allowed to lack objects of the program.
        rank: whose part of the state this is.
        world_size: of how many ranks. ``tree`` is of one rank all of it, of several what all of them share.
        local: of several ranks: the encoded tree of what is this rank's own; its tensors are among ``tensors``.
        shared: of several ranks: for each object of ``tree`` the SHA-256 of its encoded tree, as this rank has it.
    """

    step: int
    tree: Any
    tensors: Sequence[HostTensor]
    metrics: Metrics = field(default_factory=dict)
    began_at: float = 0.0
    stall: float = 0.0
    partial: bool = False
    rank: int = 0
    world_size: int = 1
    local: Any = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)


def check_state(state: HostState) -> None:
    """Refuse a state that could be written and not be read again.

    Raises:
        ConfigError: names the tensor.
    """
    held = {tensor.name for tensor in state.tensors}
    if len(held) < len(state.tensors):
        raise ConfigError(f"two tensors of step {state.step} have the same name", kind="tensor-name")
    # What all ranks share is looked for where all ranks' tensors are known: when they are committed.
    for name in tensor_names(state.tree if state.world_size == 1 else state.local):
        if name not in held:
            raise ConfigError(f"the state names the tensor {name!r}, which was not passed", kind="tensor-name")
    if state.world_size > 1:
        _check_rank(state)
    for tensor in state.tensors:
        _check_tensor(tensor)
        if state.world_size == 1 and tensor.shape != tensor.tensor_shape:
            raise ConfigError(f"{tensor.name} is not whole, and there is no other rank", kind="tensor-box")


def _check_rank(state: HostState) -> None:
    if not isinstance(state.tree, dict) or not isinstance(state.local, dict):
        raise ConfigError(f"the state of step {state.step} is no dictionary with names", kind="state")
    for name in state.tree.keys() & state.local.keys():
        raise ConfigError(f"{name!r} is both shared and rank {state.rank}'s own", kind="state")
    for name in tensor_names(state.local):
        if not name.startswith(f"rank{state.rank}/"):
            raise ConfigError(f"the tensor {name!r} is rank {state.rank}'s own, and not named so", kind="tensor-name")


def _check_tensor(tensor: HostTensor) -> None:
    if tensor.name == RESERVED_NAME or not _is_text(tensor.name):
        raise ConfigError(f"{tensor.name!r} cannot name a tensor", kind="tensor-name")
    if tensor.dtype not in KNOWN:
        raise ConfigError(
            f"{tensor.name} has the element type {tensor.dtype!r}, which format 1 does not hold", kind="dtype"
        )
    size = math.prod(tensor.shape) * item_size(tensor.dtype)
    if min(tensor.shape, default=0) < 0 or tensor.data.itemsize != 1 or len(tensor.data) != size:
        raise ConfigError(
            f"{tensor.name} is a {tensor.dtype} of shape {list(tensor.shape)}, and came with "
            f"{tensor.data.nbytes} bytes instead of {size}",
            kind="tensor-size",
        )
    whole, place = tensor.tensor_shape, tensor.place
    if not len(whole) == len(place) == len(tensor.shape) or any(
        start < 0 or start + length > end for start, length, end in zip(place, tensor.shape, whole, strict=True)
    ):
        raise ConfigError(
            f"{tensor.name} is a box of shape {list(tensor.shape)} at {list(place)} of a tensor of shape {list(whole)}",
            kind="tensor-box",
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
