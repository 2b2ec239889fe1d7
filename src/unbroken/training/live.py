"""Which tensors of the program a checkpoint's bytes may be read into, with no copy between.

Afterwards the objects' ``load_state_dict`` is called all the same, with the live tensors themselves: where it puts
equal values in place it finds them there. What does anything else with its state (hooks, methods of its own) gets fresh
memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from unbroken.checkpoint import Manifest, Tagged, TensorRecord, TensorRef, decode_tree
from unbroken.training.capture import dtype_name
from unbroken.training.objects import StateObject
from unbroken.training.sharding import is_sharded, local_of

_Memory = tuple[torch.device, int, torch.Size, tuple[int, ...], torch.dtype]
_Key = TypeVar("_Key")

_FSDP = ("torch.distributed.fsdp._fully_shard.", "torch.distributed._composable.fsdp.")
_KINDS = (torch.Tensor, torch.nn.Parameter)
"""Subclasses may keep their values elsewhere."""
_DEVICES = ("cpu", "cuda")
"""Where tensors have addresses, and one that is read in place needs no others."""


def live_tensors(
    objects: list[StateObject], manifest: Manifest, tree: Mapping[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """The live tensors that the tensors of a checkpoint may be read into, by the checkpoint's names.

    They are contiguous, on the CPU or a CUDA device, of the same shape and element type, owned by one object alone that
    loads in place, and overlap no other. Tied tensors are among them where the same ones are tied in the checkpoint. Of
    sharded ones this rank's part may be anywhere.

    Args:
        tree: what of the checkpoint this rank loads, decoded; what all share by default.
    """
    held = [(item, list(_tensors(item))) for item in objects]
    here = _unambiguous(pair for _, pairs in held for pair in pairs)
    safe = {path for item, pairs in held if loads_in_place(item.value) for path, _ in pairs}
    there = _unambiguous(_leaves(decode_tree(manifest.state) if tree is None else tree, ""))
    places = _group((_memory(tensor), path) for path, tensor in here.items())
    alone = _alone(places, here)
    wanted = _group((name, path) for path, name in there.items())

    def fits(record: TensorRecord) -> bool:
        live, paths = here.get(record.name), wanted.get(record.name, set())
        return (
            live is not None
            and (is_plain(live) if not is_sharded(live) else local_of(live).numel() > 0)
            and list(live.shape) == record.shape
            and dtype_name(live) == record.dtype
            and record.name in paths <= safe
            and len({_top(path) for path in paths}) == 1
            and places[_memory(live)] == paths
            and _memory(live) in alone
        )

    return {record.name: here[record.name] for record in manifest.tensors if fits(record)}


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but contiguous bytes of the host or a CUDA device, at least one."""
    return (
        _has_address(tensor)
        and tensor.numel() > 0
        and tensor.is_contiguous()
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_inference())
        # Sharding frameworks free the memory of a tensor and leave its shape.
        and tensor.untyped_storage().nbytes() >= (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    )


def loads_in_place(value: object) -> bool:
    """Whether loading the state of an object puts each tensor's values where the tensor of the same name has them.

    An optimizer may as well take over the tensors that it is given: the memory is the same then.
    """
    if isinstance(value, torch.nn.Module):
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        return not swaps and all(_is_ordinary_module(module) for module in value.modules())
    if isinstance(value, torch.optim.Optimizer):
        return is_ordinary_optimizer(value)
    return type(value) in _KINDS


def _is_ordinary_module(module: torch.nn.Module) -> bool:
    kind, base = type(module), torch.nn.Module
    return (
        kind.load_state_dict is base.load_state_dict
        and kind.state_dict is base.state_dict
        and kind._save_to_state_dict is base._save_to_state_dict
        and kind._load_from_state_dict.__module__.startswith("torch.nn.modules.")  # BatchNorm's mends versions alone
        and not _own_methods(module)
        and not module._state_dict_hooks
        and all(map(_is_fsdp_s, module._state_dict_pre_hooks.values()))
        and all(map(_is_fsdp_s, module._load_state_dict_pre_hooks.values()))
    )


def _is_fsdp_s(hook: Any) -> bool:
    """Whether a hook is one with which FSDP puts a module's own parts in the place of gathered tensors."""
    return getattr(getattr(hook, "hook", hook), "__module__", "").startswith(_FSDP)


def is_ordinary_optimizer(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer's state is read and loaded by torch's own code and nothing else."""
    kind, base = type(optimizer), torch.optim.Optimizer
    return (
        kind.load_state_dict is base.load_state_dict
        and kind.state_dict is base.state_dict
        and kind.__setstate__.__module__.startswith("torch.optim.")
        and not _own_methods(optimizer)
        and not optimizer._optimizer_load_state_dict_pre_hooks
        and not optimizer._optimizer_load_state_dict_post_hooks
        and not optimizer._optimizer_state_dict_pre_hooks
        and not optimizer._optimizer_state_dict_post_hooks
    )


def _own_methods(value: object) -> bool:
    return any(name in vars(value) for name in ("load_state_dict", "state_dict", "_load_from_state_dict"))


def _tensors(item: StateObject) -> Iterator[tuple[str, torch.Tensor]]:
    """Paths and live tensors of an object, by the names that a capture gives them: in memory of the host or of a CUDA
    device, or sharded.

    An object of unknown make has none.
    """
    value = item.value
    found: Iterable[tuple[str, Any]] = ()
    if isinstance(value, torch.nn.Module):
        found = _module_tensors(value, item.name)
    elif isinstance(value, torch.optim.Optimizer):
        found = _leaves(item.read().get("state", {}), f"{item.name}/state")
    elif isinstance(value, torch.Tensor):
        found = [(item.name, value)]
    for path, leaf in found:
        if isinstance(leaf, torch.Tensor) and _has_address(leaf):
            yield path, leaf


def _has_address(tensor: torch.Tensor) -> bool:
    if is_sharded(tensor):
        local = local_of(tensor)
        return type(local) in _KINDS and local.layout == torch.strided
    return type(tensor) in _KINDS and tensor.layout == torch.strided and tensor.device.type in _DEVICES


def _module_tensors(module: torch.nn.Module, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, part in module.named_modules(remove_duplicate=False):
        for key, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is not None and key not in part._non_persistent_buffers_set:
                yield f"{name}/{prefix}.{key}" if prefix else f"{name}/{key}", tensor


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Paths and what is found there: live tensors, and the names of a checkpoint's."""
    match value:
        case TensorRef(name=name):
            yield path, name
        case Tagged(tag="ndarray", value=name):
            yield path, name
        case torch.Tensor():
            yield path, value
        case Mapping():
            for key, item in value.items():
                yield from _leaves(item, f"{path}/{key}" if path else str(key))
        case list() | tuple():
            for number, item in enumerate(value):
                yield from _leaves(item, f"{path}/{number}")


def _unambiguous(found: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Without the paths that lead to several places: ``a/b`` may be one key or two."""
    pairs = list(found)
    count = Counter(path for path, _ in pairs)
    return {path: leaf for path, leaf in pairs if count[path] == 1}


def _group(pairs: Iterable[tuple[_Key, str]]) -> dict[_Key, set[str]]:
    groups: dict[_Key, set[str]] = defaultdict(set)
    for key, path in pairs:
        groups[key].add(path)
    return groups


def _top(path: str) -> str:
    return path.partition("/")[0]


def _memory(tensor: torch.Tensor) -> _Memory:
    local = local_of(tensor)
    return local.device, local.data_ptr(), tensor.shape, local.stride(), tensor.dtype


def _alone(places: Mapping[_Memory, set[str]], here: Mapping[str, torch.Tensor]) -> set[_Memory]:
    """The memories that no other one overlaps."""
    spans = [(*_span(here[next(iter(paths))]), memory) for memory, paths in places.items()]
    overlapping: set[_Memory] = set()
    reach = 0
    widest: _Memory | None = None
    for start, end, memory in sorted(spans, key=lambda span: span[:2]):
        if widest is not None and start < reach:
            overlapping |= {memory, widest}
        if end > reach:
            reach, widest = end, memory
    return set(places) - overlapping


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Address of the first byte and that after the last."""
    tensor = local_of(tensor)
    if tensor.numel() == 0:
        return 0, 0
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
