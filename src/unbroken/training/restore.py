"""Putting a verified checkpoint back into live objects, or saying which tensors do not fit."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from unbroken.checkpoint import Box, Manifest, Piece, Sink, Tagged, TensorRecord, TensorRef, decode_tree, read_pieces
from unbroken.errors import MismatchError, UnbrokenError
from unbroken.store import Store
from unbroken.training.capture import dtype_name, rebuild
from unbroken.training.device_memory import DeviceBytes, HostStaging, in_host
from unbroken.training.live import is_plain
from unbroken.training.objects import StateObject
from unbroken.training.placing import Placed
from unbroken.training.sharding import held_part, is_sharded, local_of, memory_of
from unbroken.training.structure import compare_names, compare_structure

StagedKey: TypeAlias = str | tuple[str, tuple[int, ...]]
Staged: TypeAlias = (
    Mapping[str, memoryview] | Mapping[tuple[str, tuple[int, ...]], memoryview] | Mapping[StagedKey, memoryview]
)
"""Bytes in this machine's memory: of tensors by name, or of slices by name and offset."""

_HUGE = 4 << 20
"""Bytes from which memory is worth asking for in huge pages: it holds one of them whole."""


def load_state(
    store: Store,
    manifest: Manifest,
    only: Collection[str] | None = None,
    *,
    tree: Mapping[str, Any] | None = None,
    placed: Mapping[str, Placed] | None = None,
    live: Mapping[str, torch.Tensor] | None = None,
    devices: Mapping[str, torch.device] | None = None,
    staged: Staged | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint's state to where it will be used, every byte verified. Sends no message to other ranks.

    Beside the state it takes at most 201 MB of host memory, and where bytes go to a device as much again.

    Args:
        only: names of the objects to read; those that the checkpoint lacks are passed over. All by default.
        tree: what this rank loads, decoded; what all share by default.
        placed: what names in ``tree`` mean that the checkpoint does not know: as
            :func:`~unbroken.training.placing.place` gives both.
        live: tensors of the program, by the checkpoint's names, as :func:`~unbroken.training.live.live_tensors` chooses
            them: where shape and element type agree, bytes are read straight into them and the state names the very
            tensors. After an error some of them hold bytes of the checkpoint. Compare the structure before.
        devices: where fresh memory is to be, by the checkpoint's names: as
            :func:`~unbroken.training.placing.devices_of` gives it. In the host's by default.
        staged: bytes as they may still lie in this machine's memory, of tensors by name, or of slices by name and
            offset; what disagrees with the manifest is read from the store.
        on_bytes: told, in any thread, of each number of bytes that arrived.

    Returns:
        the state by object name: whole tensors, and sharded ones of which this rank's part was read.

    Raises:
        DamagedError: bytes disagree with their digests.
    """
    held = decode_tree(manifest.state) if tree is None else tree
    wanted = {name: part for name, part in held.items() if only is None or name in only}
    given = live or {}
    by_name = {record.name: record for record in manifest.tensors}
    targets: dict[str, _Target] = {}
    for key, name in tensors_of(wanted, placed).items():
        record = by_name.get(name) or manifest.tensor(name)
        targets[key] = _target(record, given.get(name), (placed or {}).get(key), (devices or {}).get(name))
    staging = HostStaging(pinned=torch.cuda.is_available())
    pieces = {
        target.address: Piece(target.name, target.box, _destination(target.memory, staging))
        for target in targets.values()
        if target.memory.numel()
    }
    try:
        read_pieces(store, manifest, list(pieces.values()), staged=_slices(manifest, staged), on_bytes=on_bytes)
        for target in targets.values():
            target.settle()
    finally:
        for name in given.keys() & {target.name for target in targets.values() if target.is_live}:
            # torch has not seen the writes: whoever kept the old values for a backward pass must be told.
            for tensor in {given[name], memory_of(given[name])}:
                torch.autograd.graph.increment_version(tensor)
    state: dict[str, Any] = rebuild(wanted, {key: target.tensor for key, target in targets.items()})
    return state


def tensors_of(tree: Any, placed: Mapping[str, Placed] | None = None) -> dict[str, str]:
    """The tensors that a decoded tree refers to: their names in it, and in the checkpoint."""
    found: dict[str, str] = {}
    pending = [tree]
    while pending:
        match pending.pop():
            case TensorRef(name=name) | Tagged(tag="ndarray", value=name):
                found[name] = placed[name].name if placed and name in placed else name
            case Mapping() as items:
                pending.extend(reversed(list(items.values())))
            case list() | tuple() as items:
                pending.extend(reversed(items))
    return found


def bytes_wanted(manifest: Manifest, tree: Any, placed: Mapping[str, Placed]) -> int:
    """Bytes of the tensors in a decoded tree, of sharded ones of this rank's part."""
    sizes = {record.name: record.size for record in manifest.tensors}
    total = 0
    for key, name in tensors_of(tree, placed).items():
        like = placed[key].like if key in placed else None
        total += sizes.get(name, 0) if like is None else _share(sizes.get(name, 0), like, name)
    return total


def _share(size: int, like: torch.Tensor, name: str) -> int:
    part = held_part(like, name)
    return size * math.prod(part.shape) // max(1, math.prod(part.whole))


@dataclass(frozen=True)
class _Target:
    """Where a tensor of the checkpoint, or this rank's part of it, goes.

    Args:
        name: in the checkpoint.
        tensor: what the state will name.
        memory: where the bytes are read to: that of ``tensor`` itself, or memory from which it is filled afterwards.
        box: of the whole tensor: what is read.
        is_live: whether ``tensor`` is the program's own.
    """

    name: str
    tensor: torch.Tensor
    memory: torch.Tensor
    box: Box
    is_live: bool

    @property
    def address(self) -> tuple[str, torch.device, int]:
        return self.name, self.memory.device, self.memory.data_ptr()

    def settle(self) -> None:
        """After the bytes were read and verified."""
        local = local_of(self.tensor)
        if self.memory is not local and self.memory.numel():
            with torch.no_grad():
                local.copy_(self.memory)


def _target(
    record: TensorRecord, live: torch.Tensor | None, placed: Placed | None, device: torch.device | None
) -> _Target:
    is_live = live is not None and _fits(live, record)
    if is_live and live is not None:
        tensor = live
    elif placed is not None:
        tensor = torch.empty_like(placed.like.detach(), dtype=getattr(torch, record.dtype), requires_grad=False)
    else:
        tensor = _fresh(record, device or torch.device("cpu"))
    if not is_sharded(tensor):
        return _Target(record.name, tensor, tensor, Box.whole(record.shape), is_live)
    part, local = held_part(tensor, record.name), local_of(tensor)
    memory = local if is_plain(local) else torch.empty(part.shape, dtype=tensor.dtype)
    return _Target(record.name, tensor, memory, Box(part.offset, part.shape), is_live)


def _destination(memory: torch.Tensor, staging: HostStaging) -> memoryview | Sink:
    return bytes_of(memory) if in_host(memory) else DeviceBytes(memory, staging)


def _slices(manifest: Manifest, staged: Staged | None) -> dict[tuple[str, tuple[int, ...]], memoryview] | None:
    """By slice what may be there by tensor.

    Of what one process saved, a tensor that is missing is one that differs, for all were expected. Of several ranks
    each has staged its share: what is missing was another's, and is read from the store without a word.
    """
    if staged is None:
        return None
    by_slice = {key: view for key, view in staged.items() if isinstance(key, tuple)}
    by_name = {key: view for key, view in staged.items() if isinstance(key, str)}
    expected = manifest.world_size == 1 and not by_slice
    for record in manifest.tensors:
        if len(record.slices) == 1 and (expected or record.name in by_name):
            by_slice[record.name, tuple(record.slices[0].offset)] = by_name.get(record.name, memoryview(b""))
    return by_slice


def _fits(tensor: torch.Tensor, record: TensorRecord) -> bool:
    return (
        list(tensor.shape) == record.shape
        and dtype_name(tensor) == record.dtype
        and (is_sharded(tensor) or is_plain(tensor))
    )


def _fresh(record: TensorRecord, device: torch.device) -> torch.Tensor:
    """An empty tensor; a large one in huge pages, where the system has them: touching new ones costs a third then."""
    tensor = torch.empty(record.shape, dtype=getattr(torch, record.dtype), device=device)
    if in_host(tensor) and record.size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
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
