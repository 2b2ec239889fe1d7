"""From what a save plan of torch.distributed.checkpoint asks of this rank to host memory and values without pickles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType

from unbroken.checkpoint import HostTensor, decode_tree
from unbroken.errors import ConfigError
from unbroken.training.capture import capture, dtype_name
from unbroken.training.dcp_tree import Path, is_one_value, path_of, tensor_name
from unbroken.training.objects import StateObject
from unbroken.training.restore import bytes_of


@dataclass
class Resolved:
    """This rank's part of a save."""

    tensors: list[HostTensor] = field(default_factory=list)
    """Of tensors that lie contiguous in host memory it is the very memory: it must not change."""
    values: dict[str, Any] = field(default_factory=dict)
    """The encoded tree of each value that is no tensor, by torch's name; tensors within are among ``tensors``."""


def resolve(plan: SavePlan, planner: SavePlanner) -> Resolved:
    """Ask the planner for everything that this rank is to write.

    Raises:
        ConfigError: a checkpoint cannot hold it; names the key.
    """
    found = Resolved()
    for item in plan.items:
        path = path_of(item.index.fqn, plan.planner_data)
        if item.type == WriteItemType.BYTE_IO:
            _add_value(item.index.fqn, path, _object(planner, item), found)
        else:
            _add_box(item, path, planner, found)
    _refuse_twice(found.tensors)
    return found


def _object(planner: SavePlanner, item: WriteItem) -> Any:
    look_up = getattr(planner, "lookup_object", None)
    if look_up is None:
        raise ConfigError(
            f"{item.index.fqn} is no tensor, and {type(planner).__name__} gives it as a pickle alone", kind="planner",
            hint="Derive the planner from torch.distributed.checkpoint.DefaultSavePlanner",
        )  # fmt: skip
    return look_up(item.index)


def _add_value(name: str, path: Path, value: Any, found: Resolved) -> None:
    stored = tensor_name(path)
    try:
        captured = capture([StateObject(stored, None, lambda: value, lambda _: None)])
    except ConfigError as error:
        raise ConfigError(f"{name} cannot be saved: {error.message}", kind=error.kind, hint=error.hint) from error
    if not is_one_value(decode_tree(captured.tree[stored])):
        raise ConfigError(
            f"{name} is a {type(value).__name__} that the planner left whole", kind="planner",
            hint="Use a planner with flatten_state_dict=True: it is stored, and found again, part by part",
        )  # fmt: skip
    found.values[name] = captured.tree[stored]
    for inner, tensor in captured.tensors.items():
        found.tensors.append(_host_tensor(inner, tensor))


def _add_box(item: WriteItem, path: Path, planner: SavePlanner, found: Resolved) -> None:
    name, plan = item.index.fqn, item.tensor_data
    tensor = planner.resolve_data(item)
    if plan is None or not isinstance(tensor, torch.Tensor):
        raise ConfigError(f"the planner gave a {type(tensor).__name__} for the tensor {name}", kind="planner")
    shape, whole = tuple(plan.chunk.sizes), tuple(plan.size)
    if tuple(tensor.shape) != shape:
        raise ConfigError(
            f"the planner gave {list(tensor.shape)} of {name}, and had planned {list(shape)}", kind="planner"
        )
    if 0 in shape and 0 not in whole:
        return  # says nothing; other ranks have it all
    box = {} if shape == whole else {"offset": tuple(plan.chunk.offsets), "whole": whole}
    found.tensors.append(_host_tensor(tensor_name(path), tensor, **box))


def _host_tensor(name: str, tensor: torch.Tensor, **box: tuple[int, ...]) -> HostTensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ConfigError(
            f"{name} is a {tensor.layout} tensor on {tensor.device}, which a checkpoint cannot hold", kind="layout",
            hint="Save dense tensors that hold memory",
        )  # fmt: skip
    ready = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return HostTensor(name, dtype_name(ready), tuple(ready.shape), bytes_of(ready), **box)


def _refuse_twice(tensors: Iterable[HostTensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ConfigError(
                f"this rank has two parts of {tensor.name}, and a checkpoint holds one of each rank", kind="tensor-box",
                hint="Use DTensor (FSDP2, tensor parallelism): a rank has one box of each",
            )  # fmt: skip
        seen.add(tensor.name)
