"""Copies from CUDA devices into the arena: pinned memory, a stream of their own, no thread that waits.

Not yet run on a device.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from unbroken.link.arena import Slot


class CudaCopy:
    """Copies under way.

    Args:
        deferred: recorded behind the copies that a step must wait for, one for each device.
        others: recorded behind the copies that are in order with the training's own work.
    """

    def __init__(self, deferred: Sequence[torch.cuda.Event], others: Sequence[torch.cuda.Event]) -> None:
        self._deferred = deferred
        self._others = others

    def let_step(self) -> None:
        """Have what this thread gives to the devices from here on wait for the deferred copies."""
        for event in self._deferred:
            torch.cuda.current_stream(event.device).wait_event(event)

    def finish(self) -> None:
        """Return when all copies are complete."""
        for event in (*self._deferred, *self._others):
            event.synchronize()


class CudaStaging:
    """Streams, and which slots are pinned."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pinned: dict[int, int] = {}
        """Address of the memory that is pinned, by the slot's number."""

    def pin(self, slot: Slot) -> None:
        """Register a slot's memory, so that devices copy into it by themselves. What cannot be pinned is left as it is:
        the copy is slower then, and right."""
        with self._lock:
            if slot.number in self._pinned or not slot.size:
                return
            address = slot.address()
            if int(_runtime().cudaHostRegister(address, slot.size, 0)) == 0:
                self._pinned[slot.number] = address

    def unpin(self, slot: Slot) -> None:
        """Before a slot grows or is closed; nothing may be copied into it now."""
        with self._lock:
            address = self._pinned.pop(slot.number, None)
            if address is not None:
                _runtime().cudaHostUnregister(address)

    def begin(self, deferred: Mapping[str, torch.Tensor], targets: Mapping[str, memoryview]) -> list[torch.cuda.Event]:
        """Enqueue copies that begin when the devices have done what they were given so far."""
        events = []
        for device in sorted({tensor.device for tensor in deferred.values()}, key=str):
            side = self._stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for name, tensor in deferred.items():
                    if tensor.device == device:
                        flat = torch.frombuffer(targets[name], dtype=tensor.dtype, count=tensor.numel())
                        flat.view(tensor.shape).copy_(tensor, non_blocking=True)
            events.append(_record(side))
        return events

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]

    @staticmethod
    def marks(devices: set[torch.device]) -> list[torch.cuda.Event]:
        """Events behind what the devices were given so far."""
        return [_record(torch.cuda.current_stream(device)) for device in sorted(devices, key=str)]


def _record(stream: torch.cuda.Stream) -> torch.cuda.Event:
    # Blocking: a thread that waits for it sleeps, and takes no core from the training.
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    with torch.cuda.device(stream.device):
        event.record(stream)
    return event


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
