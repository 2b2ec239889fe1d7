"""From the state of live objects to a tree with named tensors, and back."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch.optim.optimizer import Optimizer

from unbroken.checkpoint import Tagged, TensorRef, encode_tree
from unbroken.checkpoint.dtypes import KNOWN
from unbroken.errors import ConfigError
from unbroken.training.objects import StateObject
from unbroken.training.ownership import Part, stager_of
from unbroken.training.ranks import Ranks
from unbroken.training.sharding import held_part, is_sharded, local_of, stages

_OF_A_RANK = re.compile(r"rank[0-9]+")


@dataclass(frozen=True)
class Captured:
    """The state of all objects at one moment.

    ``tensors`` alias live memory: they are to be copied before anything changes them.
    """

    tree: Any
    """Encoded; the top level is a dict by object name. Of several ranks: what all of them share, the same on each."""
    tensors: dict[str, torch.Tensor]
    """What this rank stages: whole tensors, and of sharded ones its part."""
    objects: list[StateObject] = field(default_factory=list)
    """What was read."""
    boxes: dict[str, Part] = field(default_factory=dict)
    """Those of ``tensors`` that are parts."""
    local: dict[str, Any] = field(default_factory=dict)
    """Of several ranks: the encoded tree of what is this rank's own; its tensors are named ``rank3/...``."""
    shared: dict[str, str] = field(default_factory=dict)
    """Of several ranks: SHA-256, in hex, of the tree of each object that all share."""
    ranks: Ranks = field(default_factory=Ranks)


def memory_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same memory, read in the same way."""
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def capture(objects: list[StateObject], ranks: Ranks | None = None) -> Captured:
    """Read the state of every object, and choose what of it this rank stages. Sends no message to the others.

    Args:
        ranks: which rank this is; the only one by default.

    Raises:
        ConfigError: a value that a checkpoint cannot hold; names its path.
    """
    ranks = ranks or Ranks()
    if ranks.world_size == 1:
        walk = _Walk(objects)
        tree = walk.tree(objects)
        _demand_whole(walk.found)
        return Captured(tree, {name: held.tensor for name, held in walk.found.items()}, list(objects), ranks=ranks)
    _check_names(objects)
    walk = _Walk(objects)
    tree = walk.tree([item for item in objects if not item.per_rank])
    own = _Walk(objects)
    local = own.tree([item for item in objects if item.per_rank], f"rank{ranks.rank}/")
    staged = {name: held for name, held in walk.found.items() if held.staged_by(name, ranks)}
    tensors = {name: held.tensor for name, held in (staged | own.found).items()}
    boxes = {name: held.part for name, held in staged.items() if held.part is not None and not held.part.complete}
    return Captured(tree, tensors, list(objects), boxes, local, digests(tree), ranks)


def digests(tree: dict[str, Any]) -> dict[str, str]:
    """SHA-256, in hex, of each object's part of an encoded tree, by the object's name."""
    encode = msgspec.json.Encoder(order="sorted").encode
    return {name: hashlib.sha256(encode(part)).hexdigest() for name, part in tree.items()}


def _check_names(objects: list[StateObject]) -> None:
    for item in objects:
        if _OF_A_RANK.fullmatch(item.name):
            raise ConfigError(
                f"{item.name!r} cannot name a part of the state of several ranks", kind="state",
                hint="Names like rank0 are those of each rank's own part",
            )  # fmt: skip


def _demand_whole(found: Mapping[str, _Held]) -> None:
    for held in found.values():
        if held.part is not None and not held.part.complete:
            raise ConfigError(
                f"{held.path} is sharded over several ranks (a DTensor), and this process saves for itself alone",
                kind="sharded", hint="Save with unbroken.Run on all ranks",
            )  # fmt: skip


@dataclass(frozen=True)
class _Held:
    """A tensor that was found, as this rank has it.

    Args:
        tensor: its memory.
        path: its name in error messages.
        dealt: whether ranks have it alike, so that any of them may stage it.
        sharded: the tensor of several ranks of which ``tensor`` is this one's part.
        part: which part; None for an ordinary tensor.
    """

    tensor: torch.Tensor
    path: str
    dealt: bool
    sharded: torch.Tensor | None = None
    part: Part | None = None

    def staged_by(self, name: str, ranks: Ranks) -> bool:
        if self.sharded is not None and self.part is not None:
            return (not self.part.empty or self.part.complete) and stages(name, self.sharded, self.path)
        size = self.tensor.numel() * self.tensor.element_size()
        return ranks.rank == (stager_of(name, size, ranks.world_size) if self.dealt else 0)


class _Walk:
    """Takes tensors out of nested values and leaves their names.

    Two names of one tensor (tied weights) become two references to one stored tensor.

    Args:
        objects: all of the state, among whose modules and optimizers the parameters are.
    """

    def __init__(self, objects: list[StateObject]) -> None:
        self.found: dict[str, _Held] = {}
        self._seen: dict[tuple[Any, ...], str] = {}
        self._parameters = {memory_key(parameter) for item in objects for parameter in _parameters(item.value)}
        self._optimizer = False

    def tree(self, objects: list[StateObject], prefix: str = "") -> dict[str, Any]:
        """The encoded trees of some objects; ``prefix`` begins the names of their tensors."""
        parts = {}
        for item in objects:
            self._optimizer = isinstance(item.value, Optimizer)
            parts[item.name] = self.leave(item.read(), f"{prefix}{item.name}", item.name)
        encoded: dict[str, Any] = encode_tree(parts)
        return encoded

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
        held = self._held(tensor.detach(), path)
        key = _sharded_key(held) if held.sharded is not None else memory_key(held.tensor)
        if (held.sharded is not None or held.tensor.numel()) and key in self._seen:
            return self._seen[key]
        unique, number = name, 1
        while unique in self.found or unique == "__metadata__":
            number += 1
            unique = f"{name}#{number}"
        self.found[unique] = held
        self._seen[key] = unique
        return unique

    def _held(self, tensor: torch.Tensor, path: str) -> _Held:
        if is_sharded(tensor):
            local, part = _storable(local_of(tensor), path), held_part(tensor, path)
            if not tensor.numel():  # every rank has all of it
                local = local.new_empty(part.whole)
            return _Held(local, path, dealt=False, sharded=tensor, part=part)
        plain = _storable(tensor, path)
        return _Held(plain, path, dealt=self._optimizer or memory_key(plain) in self._parameters)


def _parameters(value: object) -> list[torch.Tensor]:
    """The parameters of a module or an optimizer that ranks have whole."""
    if isinstance(value, torch.nn.Module):
        found = list(value.parameters())
    elif isinstance(value, Optimizer):
        found = [parameter for group in value.param_groups for parameter in group["params"]]
    else:
        return []
    return [parameter for parameter in found if not is_sharded(parameter) and parameter.layout == torch.strided]


def _sharded_key(held: _Held) -> tuple[Any, ...]:
    """Equal for two sharded tensors that are one: on every rank or on none, also where its part is empty."""
    tensor = held.tensor
    whole = tuple(held.sharded.shape) if held.sharded is not None else ()
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), *memory_key(tensor)[2:], whole


def _storable(tensor: torch.Tensor, path: str) -> torch.Tensor:
    """The tensor as plain strided memory of a known element type."""
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
