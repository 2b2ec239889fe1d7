"""Which tensors of a checkpoint become sharded ones here, as the program's own are, and which belong on a device."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from unbroken.checkpoint import Manifest, TensorRef
from unbroken.training.device_memory import in_host
from unbroken.training.live import is_ordinary_optimizer
from unbroken.training.objects import StateObject
from unbroken.training.sharding import is_sharded, local_of


@dataclass(frozen=True)
class Placed:
    """A tensor of the checkpoint, and the live one like which it is to be spread over the ranks."""

    name: str
    like: torch.Tensor


def place(
    tree: dict[str, Any], objects: Sequence[StateObject], manifest: Manifest | None = None
) -> tuple[dict[str, Any], dict[str, Placed]]:
    """Find out which tensors are sharded in this program.

    Args:
        tree: decoded, by object name.
        manifest: of the checkpoint, for the shapes: a tensor of another shape than the program's is not like it. None
            where they are not known yet.

    Returns:
        the tree with other names in the place of those of tensors that are to be sharded, and what these names mean.
    """
    if not any(name.startswith("torch.distributed.tensor") for name in sys.modules):
        return tree, {}  # nobody has made one
    work = _Placing(None if manifest is None else {record.name: tuple(record.shape) for record in manifest.tensors})
    placed = dict(tree)
    for item in objects:
        if item.name in tree and not item.per_rank:
            live = item.read()
            if isinstance(item.value, Optimizer):
                placed[item.name] = work.optimizer(tree[item.name], live, item.value)
            else:
                placed[item.name] = work.like(tree[item.name], live)
    return placed, work.placed


def devices_of(tree: Mapping[str, Any], objects: Sequence[StateObject]) -> dict[str, torch.device]:
    """The devices to which optimizers will move state that they do not have yet, by the checkpoint's names.

    ``Optimizer.load_state_dict`` takes state to the device of its parameter, all but ``step``. What is read to there at
    once is taken over as it is, and needs no host memory.

    Args:
        tree: decoded, by object name.
    """
    found: dict[str, torch.device] = {}
    for item in objects:
        if isinstance(item.value, Optimizer) and is_ordinary_optimizer(item.value) and item.name in tree:
            parameters = [parameter for group in item.value.param_groups for parameter in group["params"]]
            for parameter, saved in _paired(parameters, tree[item.name]):
                if not in_host(parameter):
                    found |= {
                        value.name: parameter.device
                        for key, value in saved.items()
                        if key != "step" and isinstance(value, TensorRef)
                    }
    return found


def _paired(parameters: Sequence[torch.Tensor], saved: Any) -> list[tuple[torch.Tensor, Mapping[Any, Any]]]:
    """Parameters and what an optimizer's saved state has of each, which are in the same order."""
    try:
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        return [
            (parameter, _mapping(saved["state"].get(number)))
            for number, parameter in zip(numbers, parameters, strict=False)
        ]
    except (AttributeError, KeyError, TypeError):
        return []  # of another make: whoever loads it says so


@dataclass(frozen=True)
class _OfParameter:
    """In the place of a parameter's state: what there is of it, and the parameter."""

    known: Mapping[Any, Any]
    parameter: torch.Tensor


class _Placing:
    def __init__(self, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
        self.placed: dict[str, Placed] = {}
        self._shapes = shapes
        self._names: dict[tuple[Any, ...], str] = {}

    def optimizer(self, saved: Any, live: Any, optimizer: Optimizer) -> Any:
        """The state of an optimizer that may not have made its state yet: it will be like the parameters."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        try:
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            known = live.get("state", {})
        except (AttributeError, KeyError, TypeError):
            return self.like(saved, live)
        expected = {
            number: _OfParameter(_mapping(known.get(position)), parameter)
            for position, (number, parameter) in enumerate(zip(numbers, parameters, strict=False))
        }
        return self.like(saved, {**live, "state": expected})

    def like(self, saved: Any, live: Any) -> Any:
        """``saved`` with the names of sharded tensors where ``live`` has such."""
        if isinstance(saved, TensorRef):
            return self._tensor(saved, live.parameter if isinstance(live, _OfParameter) else live)
        if isinstance(saved, Mapping) and isinstance(live, Mapping | _OfParameter):
            return type(saved)((key, self.like(item, _below(live, key))) for key, item in saved.items())  # type: ignore[call-arg]
        if isinstance(saved, list | tuple) and isinstance(live, _OfParameter):
            return type(saved)(self.like(item, live) for item in saved)
        if isinstance(saved, list | tuple) and isinstance(live, list | tuple) and len(saved) == len(live):
            return type(saved)(self.like(item, there) for item, there in zip(saved, live, strict=True))
        return saved

    def _tensor(self, saved: TensorRef, live: Any) -> TensorRef:
        if not is_sharded(live) or (self._shapes is not None and self._shapes.get(saved.name) != tuple(live.shape)):
            return saved
        kind = (saved.name, live.device_mesh, tuple(live.placements), local_of(live).device)
        if kind not in self._names:  # two that are tied there and spread alike here stay one
            self._names[kind] = f"{saved.name}\0{len(self._names)}"
            self.placed[self._names[kind]] = Placed(saved.name, live)
        return TensorRef(self._names[kind])


def _below(live: Mapping[Any, Any] | _OfParameter, key: Any) -> Any:
    if isinstance(live, Mapping):
        return live.get(key)
    if key in live.known:
        return live.known[key]
    return None if key == "step" else _OfParameter({}, live.parameter)  # which is a number for itself


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
