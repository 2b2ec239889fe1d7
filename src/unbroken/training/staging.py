"""Staging: copying the state into the arena, where it stays put while it is uploaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.optim.optimizer import Optimizer

from unbroken.checkpoint import HostState, HostTensor
from unbroken.clock import Clock
from unbroken.link.arena import Slot, SlotOwner, layout
from unbroken.size import size_text
from unbroken.training.capture import Captured, capture, dtype_name
from unbroken.training.copying import CopyingThread, DeferredCopy, copy_now
from unbroken.training.cuda_staging import CudaCopy, CudaStaging
from unbroken.training.memory import Room, host_room, kept_back
from unbroken.training.objects import StateObject
from unbroken.training.overlap import (
    WORTH_DEFERRING,
    SnapshotSpoiled,
    StepGuard,
    Versions,
    deferrable,
    expected_growth,
    find_optimizers,
    watched,
)
from unbroken.training.ranks import Ranks
from unbroken.training.restore import bytes_of
from unbroken.training.slots import SlotPool

__all__ = ["SnapshotSpoiled", "StagingArea"]


@dataclass(frozen=True)
class _Plan:
    """One state on its way into a slot."""

    slot: Slot
    starts: list[int]
    staged: list[HostTensor]
    state: Callable[[list[HostTensor], float], HostState]
    owner: SlotOwner

    def seal(self, stall: float) -> HostState:
        state = self.state(self.staged, stall)
        self.slot.seal(self.owner, state, self.starts)
        return state


class StagingArea:
    """Two slots: one may be uploaded while the other is filled. A slot that is being read is never rewritten.

    The loop's thread calls it; :meth:`give_back` may be called by any.

    Args:
        overlap: whether what only the optimizer changes may be copied while the next step runs.
        say: told, once each, what people should know: that memory is short, that nothing is overlapped, and why.
        clock: for measuring how long the loop stands still.
        gate: called by the copying thread before each tensor; for tests.
        worth_deferring: bytes from which on a tensor is copied later.
        room: how much memory may be taken.
        ranks: which rank this is, of how many; the only one by default.
    """

    def __init__(
        self,
        *,
        overlap: bool = True,
        say: Callable[[str], None],
        clock: Clock,
        gate: Callable[[], None] = lambda: None,
        worth_deferring: int = WORTH_DEFERRING,
        room: Callable[[], Room] = host_room,
        ranks: Ranks | None = None,
    ) -> None:
        self._overlap = overlap
        self._ranks = ranks or Ranks()
        self._say = say
        self._said: set[str] = set()
        self._clock = clock
        self._gate = gate
        self._worth_deferring = worth_deferring
        self._room = room
        self._guard: StepGuard | None = None
        self._copying = CopyingThread()
        self._cuda = CudaStaging()
        self._pool = SlotPool(say=self._tell, touched=self._touched, leaving=self._cuda.unpin, room=room)
        self._on_cuda = False
        self._closing = False

    @property
    def slots(self) -> list[Slot]:
        """All slots that there are, for offering them to an agent."""
        return self._pool.slots

    @property
    def streaming(self) -> bool:
        """Whether the host has no room for a staged copy, so that the state is uploaded from where it lies."""
        return self._pool.streaming

    @property
    def overlaps(self) -> bool:
        """Whether what only the optimizer changes is copied while the next step runs."""
        return self._overlap

    def prepare(self, objects: list[StateObject], adopted: Sequence[Slot] = ()) -> None:
        """Make slots for the state as it will be, as many as memory allows, and begin to touch them.

        Args:
            objects: the state, restored.
            adopted: slots of an earlier trainer, owned by this area from now on. What they hold, and that they are
                sealed, stays until one is staged to.

        Raises:
            ConfigError: the state holds what a checkpoint cannot.
        """
        tensors = capture(objects, self._ranks).tensors.values()
        self._on_cuda = any(tensor.is_cuda for tensor in tensors)
        _, size = layout(_length(tensor) for tensor in tensors)
        self._pool.prepare(size, expected_growth(objects, self._ranks), adopted)
        if not self.streaming:
            self._hooked(objects)

    @property
    def copies(self) -> bool:
        """Whether there is a thread that copies: without one no snapshot that is not whole will become so."""
        return self._copying.alive()

    def take(self) -> Slot | None:
        """A free slot, the one with most memory first; None while all are under way."""
        return self._pool.take()

    def give_back(self, slot: Slot) -> None:
        """What ``slot`` held may be overwritten from now on. Views of it must not be read any more."""
        self._pool.give_back(slot)

    def wait_until_touched(self, seconds: float) -> bool:
        """Whether all memory is there, or nothing more is done about it, within ``seconds``; for measuring."""
        return self._pool.wait_until_touched(seconds)

    def stage(
        self,
        slot: Slot,
        captured: Captured,
        state: Callable[[list[HostTensor], float], HostState],
        owner: SlotOwner,
        done: Callable[[HostState | Exception], None],
        *,
        eager: bool = False,
    ) -> None:
        """Copy a state into a slot and seal it; returns when the loop may go on.

        The slot stays the caller's until :meth:`give_back`, whatever comes of it.

        Args:
            slot: from :meth:`take`.
            captured: the state at this boundary.
            state: makes what is staged out of the tensors and the seconds that the loop stood still for it.
            owner: whose state it is.
            done: called once, unless this raises: in this thread where all was copied at once, else in the copying
                thread; with the sealed state, or with :class:`SnapshotSpoiled` or another error.
            eager: copy everything now.

        Raises:
            MemoryError: the host has no room for the state.
        """
        began = self._clock.monotonic()
        tensors = captured.tensors
        starts, size = layout(_length(tensor) for tensor in tensors.values())
        room = self._pool.reserve(slot, size)
        staged = [
            _described(captured, name, tensor, room[start : start + _length(tensor)])
            for (name, tensor), start in zip(tensors.items(), starts, strict=True)
        ]
        plan = _Plan(slot, starts, staged, state, owner)
        optimizers = [] if eager else self._hooked(captured.objects)
        later = deferrable(tensors, optimizers, smallest=self._worth_deferring)
        if _devices(tensors):
            self._cuda.pin(slot)
        for target in staged:
            if target.name not in later:
                copy_now(tensors[target.name], target.data)
        if later:
            self._copy_later(plan, tensors, later, watched(later, optimizers), done, began)
            return
        for device in _devices(tensors):
            torch.cuda.current_stream(device).synchronize()
        done(plan.seal(self._clock.monotonic() - began))

    def stream(self, captured: Captured) -> list[HostTensor]:
        """The state from where it lies: views of memory in row-major order, copies of everything else.

        The loop must stand still until they have been read.

        Raises:
            MemoryError: the host has no room for the copies.
        """
        tensors = captured.tensors
        copies = sum(_length(tensor) for tensor in tensors.values() if not _lies_ready(tensor))
        room = self._room()
        if copies and copies + kept_back(0) > room.size:
            raise MemoryError(
                f"{size_text(copies)} of the state must be copied to be saved, and {room.bound} leaves "
                f"{size_text(room.size)}"
            )
        return [_described(captured, name, tensor, _view(tensor)) for name, tensor in tensors.items()]

    def close(self, seconds: float) -> None:
        """Let copies under way finish for at most ``seconds``, and end threads, hook and slots."""
        if not self._copying.finish(seconds):
            self._closing = True
        self._copying.close()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        self._pool.close()

    def _copy_later(
        self,
        plan: _Plan,
        tensors: dict[str, torch.Tensor],
        later: dict[str, torch.Tensor],
        beside: Mapping[str, Sequence[torch.Tensor]],
        done: Callable[[HostState | Exception], None],
        began: float,
    ) -> None:
        targets = {target.name: target.data for target in plan.staged}
        on_host = {name: tensor for name, tensor in later.items() if not tensor.is_cuda}
        on_device = {name: tensor for name, tensor in later.items() if tensor.is_cuda}
        device = None
        if devices := _devices(tensors):
            versions = Versions(on_device, beside)
            device = CudaCopy(self._cuda.begin(on_device, targets), self._cuda.marks(devices)), versions
        work = [(tensor, targets[name]) for name, tensor in on_host.items()]
        blocked = 0.0

        def then(held_back: float, error: Exception | None) -> None:
            done(self._sealed(plan, blocked + held_back, error))

        copy = DeferredCopy(work, Versions(on_host, beside), device, then=then, gate=self._gate, clock=self._clock)
        blocked = self._clock.monotonic() - began
        self._copying.submit(copy)

    def _hooked(self, objects: Sequence[StateObject]) -> list[Optimizer]:
        """The optimizers whose steps can be held back, and are from now on."""
        if not self._overlap:
            return []
        optimizers, reason = find_optimizers(objects)
        if reason:
            self._stop_overlapping(f"every save is copied at once: {reason}")
        elif optimizers and self._guard is None:
            self._guard = StepGuard(self._copying.hold_step)
        return optimizers

    def _stop_overlapping(self, text: str) -> None:
        self._overlap = False
        self._tell(text)

    def _sealed(self, plan: _Plan, stall: float, error: Exception | None) -> HostState | Exception:
        """In the copying thread."""
        if isinstance(error, SnapshotSpoiled) and not self._closing:
            self._stop_overlapping(f"{error.message}: this snapshot is thrown away, later ones are copied at once")
        if error is not None:
            return error
        try:
            return plan.seal(stall)
        except Exception as fault:  # noqa: BLE001 - whoever waits for the snapshot is told
            return fault

    def _touched(self, slot: Slot) -> None:
        """In the prefaulting thread."""
        if self._on_cuda:
            self._cuda.pin(slot)

    def _tell(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)


def _described(captured: Captured, name: str, tensor: torch.Tensor, data: memoryview) -> HostTensor:
    part = captured.boxes.get(name)
    place = {"offset": part.offset, "whole": part.whole} if part is not None else {}
    return HostTensor(name, dtype_name(tensor), tuple(tensor.shape), data, **place)


def _length(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _devices(tensors: dict[str, torch.Tensor]) -> set[torch.device]:
    return {tensor.device for tensor in tensors.values() if tensor.is_cuda}


def _lies_ready(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous()


def _view(tensor: torch.Tensor) -> memoryview:
    return bytes_of(tensor if _lies_ready(tensor) else tensor.detach().cpu().contiguous())
