"""Staging: copying the state into host memory that stays put while it is uploaded."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator

import torch

from unbroken.checkpoint import HostTensor
from unbroken.training.capture import dtype_name

_ALIGNMENT = 64
_SLOTS = 2


class Slot:
    """Flat host memory for one staged state. Belongs to whoever took it until :meth:`release`."""

    def __init__(self, area: StagingArea) -> None:
        self._area = area
        self._memory: mmap.mmap | None = None
        self.tensors: list[HostTensor] = []

    @property
    def size(self) -> int:
        """Bytes of memory that this slot holds."""
        return len(self._memory) if self._memory is not None else 0

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy tensors in; returns when the copy is complete, also from a GPU.

        Raises:
            MemoryError: the host has no room for the state.
        """
        places, size = _layout(tensors)
        memory = self._room(size)
        staged = []
        for (name, tensor), place in zip(tensors.items(), places, strict=True):
            length = tensor.numel() * tensor.element_size()
            if length:
                target = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=place)
                target.view(tensor.shape).copy_(tensor)
            data = memoryview(memory)[place : place + length]
            staged.append(HostTensor(name, dtype_name(tensor), tuple(tensor.shape), data))
        self.tensors = staged

    def release(self) -> None:
        """Give the slot back; what it held may be overwritten from now on."""
        self.tensors = []
        self._area.give_back(self)

    def _room(self, size: int) -> mmap.mmap:
        if self._memory is None or len(self._memory) < size:
            # Old memory goes first: the host may have no room for both. Views on it keep it alive if any are left.
            self._memory = None
            try:
                self._memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except OSError as error:
                raise MemoryError(f"the host has no room for a staging slot of {size} bytes ({error})") from error
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        return self._memory


class StagingArea:
    """Two slots: one may be uploaded while the other is filled. A slot that is being read is never rewritten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = [Slot(self) for _ in range(_SLOTS)]

    def take(self) -> Slot | None:
        """A free slot, or None while both are being uploaded."""
        with self._lock:
            # The largest first: its memory is there already.
            self._free.sort(key=lambda slot: slot.size)
            return self._free.pop() if self._free else None

    def give_back(self, slot: Slot) -> None:
        """Called by :meth:`Slot.release`."""
        with self._lock:
            if slot not in self._free:
                self._free.append(slot)


def _layout(tensors: dict[str, torch.Tensor]) -> tuple[list[int], int]:
    """Where each tensor begins, and the size of the whole, in bytes."""

    def places() -> Iterator[int]:
        at = 0
        for tensor in tensors.values():
            yield at
            at += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        yield at

    *starts, size = places()
    return starts, size
