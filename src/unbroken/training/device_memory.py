"""Memory of a device, filled from the host a chunk at a time: no second copy of the state stands in host memory.

A copy on CUDA has not yet been run on a device.
"""

from __future__ import annotations

import ctypes
import threading

import torch

from unbroken.checkpoint import Way


def in_host(tensor: torch.Tensor) -> bool:
    """Whether its bytes can be written by address; those of a device go through :class:`DeviceBytes`."""
    return tensor.device.type == "cpu"


class HostStaging:
    """A buffer for each thread that copies, as large as the largest copy it made: of a chunk, 16 MiB at most.

    With the twelve threads of a restore it takes 201 MB. Where there is CUDA it is pinned, so that the device fetches
    from it by itself. It lives as long as its thread.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._own = threading.local()

    def holding(self, data: memoryview) -> torch.Tensor:
        """A copy of 1-D ``data`` in the thread's buffer, of uint8; valid until the thread's next call."""
        size = len(data)
        buffer: torch.Tensor | None = getattr(self._own, "buffer", None)
        if buffer is None or buffer.numel() < size:
            self._own.buffer = None  # before the larger one is there: only one counts
            buffer = self._own.buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        memory = (ctypes.c_ubyte * size).from_address(buffer.data_ptr())
        memoryview(memory).cast("B")[:] = data
        return buffer[:size]


class DeviceBytes:
    """The memory of a contiguous tensor, wherever it is, as the bytes that a restore puts there.

    Args:
        tensor: contiguous; not empty.
        staging: through which the bytes go.
    """

    def __init__(self, tensor: torch.Tensor, staging: HostStaging) -> None:
        self.size = tensor.numel() * tensor.element_size()
        self._staging = staging
        self._begin = tensor.storage_offset() * tensor.element_size()
        nothing = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        # Not by view(): element types differ in what they let themselves be viewed as.
        self._bytes = nothing.set_(tensor.untyped_storage(), self._begin, (self.size,), (1,))

    def put(self, way: Way, data: memoryview) -> None:
        """Copy what ``way`` says of ``data``, 1-D and of bytes; returns when the bytes are there. In any thread."""
        source = self._staging.holding(data[way.source : way.end])
        shape = (*(stride.count for stride in way.strides), way.run)
        target = self._bytes.as_strided(
            shape, (*(stride.target for stride in way.strides), 1), self._begin + way.target
        )
        runs = source.as_strided(shape, (*(stride.source for stride in way.strides), 1), 0)
        with torch.no_grad():
            target.copy_(runs)  # not left under way: the buffer is written anew, and whoever reads next may be a stream
