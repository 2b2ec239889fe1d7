"""Putting a verified checkpoint back into live objects, or saying which tensors do not fit."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from unbroken.checkpoint import Manifest, TensorRecord, decode_tree, read_tensors
from unbroken.checkpoint.tree import tensor_names
from unbroken.errors import MismatchError, UnbrokenError
from unbroken.store import Store
from unbroken.training.capture import dtype_name, rebuild
from unbroken.training.live import is_plain
from unbroken.training.objects import StateObject
from unbroken.training.structure import compare_names, compare_structure

_HUGE = 4 << 20
"""Bytes from which memory is worth asking for in huge pages: it holds one of them whole."""


def load_state(
    store: Store,
    manifest: Manifest,
    only: Collection[str] | None = None,
    *,
    live: Mapping[str, torch.Tensor] | None = None,
    staged: Mapping[str, memoryview] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint's state into host memory, every byte verified.

    Args:
        only: names of the objects to read; those that the checkpoint lacks are passed over. All by default.
        live: tensors of the program, by the checkpoint's names, as :func:`~unbroken.training.live.live_tensors` chooses
            them: where shape and element type agree, bytes are read straight into them and the state names the very
            tensors. After an error some of them hold bytes of the checkpoint. Compare the structure before.
        staged: the bytes of tensors by name, as they may still lie in this machine's memory; what disagrees with the
            manifest is read from the store.
        on_bytes: told, in any thread, of each number of bytes that arrived.

    Returns:
        the state by object name, with CPU tensors.

    Raises:
        DamagedError: bytes disagree with their digests.
    """
    tensors: dict[str, torch.Tensor] = {}
    given = live or {}

    def allocate(record: TensorRecord) -> memoryview:
        tensor = given.get(record.name)
        if tensor is None or not _fits(tensor, record):
            tensor = _fresh(record)
        tensors[record.name] = tensor
        return bytes_of(tensor)

    tree = manifest.state
    if only is not None:
        tree = {name: part for name, part in tree.items() if name in only}
    names = None if only is None else tensor_names(tree)
    try:
        read_tensors(store, manifest, names, allocate=allocate, staged=staged, on_bytes=on_bytes)
    finally:
        for name in given.keys() & tensors.keys():
            # torch has not seen the writes: whoever kept the old values for a backward pass must be told.
            torch.autograd.graph.increment_version(given[name])
    state: dict[str, Any] = rebuild(decode_tree(tree), tensors)
    return state


def _fits(tensor: torch.Tensor, record: TensorRecord) -> bool:
    return list(tensor.shape) == record.shape and dtype_name(tensor) == record.dtype and is_plain(tensor)


def _fresh(record: TensorRecord) -> torch.Tensor:
    """An empty tensor; a large one in huge pages, where the system has them: touching new ones costs a third then."""
    tensor = torch.empty(record.shape, dtype=getattr(torch, record.dtype))
    if record.size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + record.size) // mmap.PAGESIZE * mmap.PAGESIZE
        # Advice alone: a system that does not take it gives small pages, as before.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)
    return tensor


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
    compare_structure(objects, state)
    for item in objects:
        if item.name in state:
            _load(item, state[item.name])


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
