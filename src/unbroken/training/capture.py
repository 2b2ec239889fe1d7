"""From the state of live objects to a tree with named tensors, and back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from unbroken.checkpoint import Tagged, TensorRef, encode_tree
from unbroken.checkpoint.dtypes import KNOWN
from unbroken.errors import ConfigError
from unbroken.training.objects import StateObject


@dataclass(frozen=True)
class Captured:
    """The state of all objects at one moment.

    ``tensors`` alias live memory: they are to be copied before anything changes them.
    """

    tree: Any
    """Encoded; the top level is a dict by object name."""
    tensors: dict[str, torch.Tensor]
    objects: list[StateObject] = field(default_factory=list)
    """What was read."""


def memory_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same memory, read in the same way."""
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def capture(objects: list[StateObject]) -> Captured:
    """Read the state of every object.

    Raises:
        ConfigError: a value that a checkpoint cannot hold; names its path.
    """
    walk = _Walk()
    tree = {item.name: walk.leave(item.read(), item.name, item.name) for item in objects}
    return Captured(encode_tree(tree), walk.tensors, list(objects))


class _Walk:
    """Takes tensors out of nested values and leaves their names.

    Two names of one tensor (tied weights) become two references to one stored tensor.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._seen: dict[tuple[Any, ...], str] = {}

    def leave(self, value: Any, name: str, path: str) -> Any:
        """``name`` is that of a tensor found here; ``path`` is the way to it in the words of error messages."""
        if isinstance(value, torch.Tensor):
            return TensorRef(self._tensor(value, name, path))
        if isinstance(value, torch.Size):
            return Tagged("size", list(value))
        if isinstance(value, torch.dtype):
            return Tagged("dtype", _dtype_name(value))
        if isinstance(value, torch.device):
            return Tagged("device", str(value))
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            items = [self.leave(item, f"{name}/{i}", f"{path}[{i}]") for i, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, Mapping) and isinstance(value, dict):
            # Subclasses of dict (defaultdict, a state_dict with its _metadata) carry their items here, no more.
            kind = OrderedDict if isinstance(value, OrderedDict) else dict
            return kind((key, self.leave(item, f"{name}/{key}", f"{path}[{key!r}]")) for key, item in value.items())
        if type(value).__module__ == "numpy":
            return self._numpy_value(value, name, path)
        return value

    def _numpy_value(self, value: Any, name: str, path: str) -> Any:
        if hasattr(value, "ndim") and type(value).__name__ == "ndarray" and value.dtype.kind in "biufc":
            return Tagged("ndarray", self._tensor(torch.from_numpy(value.copy()), name, path))
        if hasattr(value, "item") and getattr(value, "dtype", None) is not None and value.dtype.kind in "biuf":
            return Tagged("scalar", [str(value.dtype), value.item()])
        return value

    def _tensor(self, tensor: torch.Tensor, name: str, path: str) -> str:
        tensor = _storable(tensor.detach(), path)
        key = memory_key(tensor)
        if tensor.numel() and key in self._seen:
            return self._seen[key]
        unique, number = name, 1
        while unique in self.tensors or unique == "__metadata__":
            number += 1
            unique = f"{name}#{number}"
        self.tensors[unique] = tensor
        self._seen[key] = unique
        return unique


def _storable(tensor: torch.Tensor, path: str) -> torch.Tensor:
    """The tensor as plain strided memory of a known element type."""
    if hasattr(tensor, "device_mesh"):
        raise ConfigError(
            f"{path} is sharded over several ranks (a DTensor)", kind="sharded",
            hint="This version saves training on a single process",
        )  # fmt: skip
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ConfigError(
            f"{path} is a {tensor.layout} tensor on {tensor.device}, which a checkpoint cannot hold", kind="layout",
            hint="Save dense tensors that hold memory",
        )  # fmt: skip
    if _dtype_name(tensor.dtype) not in KNOWN:
        raise ConfigError(f"{path} has the element type {tensor.dtype}, which format 1 does not hold", kind="dtype")
    return tensor.resolve_conj().resolve_neg()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_name(tensor: torch.Tensor) -> str:
    """torch's name of the element type, without the prefix: ``float32``."""
    return _dtype_name(tensor.dtype)


def rebuild(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Put tensors in the place of their names: the inverse of what :func:`capture` left.

    Args:
        value: a decoded tree.
        tensors: by name.
    """
    match value:
        case TensorRef(name=name):
            return tensors[name]
        case Tagged():
            return _rebuild_tagged(value, tensors)
        case list():
            return [rebuild(item, tensors) for item in value]
        case tuple():
            return tuple(rebuild(item, tensors) for item in value)
        case OrderedDict():
            return OrderedDict((key, rebuild(item, tensors)) for key, item in value.items())
        case dict():
            return {key: rebuild(item, tensors) for key, item in value.items()}
    return value


def _rebuild_tagged(leaf: Tagged, tensors: dict[str, torch.Tensor]) -> Any:
    match leaf.tag:
        case "size":
            return torch.Size(leaf.value)
        case "dtype":
            return getattr(torch, leaf.value)
        case "device":
            return torch.device(leaf.value)
        case "ndarray":
            return tensors[leaf.value].numpy()
    import numpy

    return numpy.dtype(leaf.value[0]).type(leaf.value[1])
