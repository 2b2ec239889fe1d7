"""Which tensors of a checkpoint become sharded ones here, as the program's own are; the others are read whole."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from unbroken.checkpoint import Manifest, TensorRef
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
