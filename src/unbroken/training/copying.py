"""Copying tensors into staging memory: at once, or by a thread while the training goes on."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from unbroken.clock import Clock
from unbroken.training.overlap import SnapshotSpoiled, Versions

_log = logging.getLogger("unbroken")

_PIECE = 16 << 20
"""Bytes that one thread copies in one go."""
_SMALL = 32 << 10
"""Bytes below which torch's own copy costs more than it copies."""
_LONGEST_WAIT = 120.0
"""Seconds for which an optimizer's step is held back at most; then the copy is given up, and the training goes on."""
_LOOK = 1.0
_NICE = 10
"""Priority of the thread that copies: it takes what the training leaves of the cores; a step that waits helps."""
_LAST_WORDS_SECONDS = 1.0

# Without giving other threads a turn, which for so little would take longer than the copy.
_memmove_small = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.cast(ctypes.CDLL(None).memmove, ctypes.c_void_p).value or 0
)


class DevicePart(Protocol):
    """What of a staging a device copies; see :mod:`unbroken.training.cuda_staging`."""

    def let_step(self) -> None:
        """Have the work that this thread gives to the device next wait for the copy."""

    def finish(self) -> None:
        """Return when the copy is complete."""


def copy_now(source: torch.Tensor, target: memoryview) -> None:
    """Copy a tensor, with all of torch's threads where it is large, or from a device."""
    length = len(target)
    if not length:
        return
    if length <= _SMALL and source.device.type == "cpu" and source.is_contiguous():
        _memmove_small(_address(target), source.data_ptr(), length)
        return
    flat = torch.frombuffer(target, dtype=source.dtype, count=source.numel())
    flat.view(source.shape).copy_(source, non_blocking=source.is_cuda)


@dataclass(frozen=True)
class Piece:
    """Some bytes of a tensor, and where they go."""

    source: torch.Tensor
    target: memoryview
    start: int
    length: int


def _pieces(work: Sequence[tuple[torch.Tensor, memoryview]]) -> Iterator[Piece]:
    for source, target in work:
        for start in range(0, len(target), _PIECE):
            yield Piece(source, target, start, min(_PIECE, len(target) - start))


def _move(piece: Piece) -> None:
    """On this thread alone: torch's threads belong to the training."""
    ctypes.memmove(_address(piece.target) + piece.start, piece.source.data_ptr() + piece.start, piece.length)


def _spread(piece: Piece) -> None:
    """On all of torch's threads."""
    target = torch.frombuffer(piece.target, dtype=torch.uint8)
    source = piece.source.view(-1).view(torch.uint8)
    end = piece.start + piece.length
    target[piece.start : end].copy_(source[piece.start : end])


class DeferredCopy:
    """One staging of which a part is copied later.

    Args:
        work: source and target of each tensor that this thread's host copies.
        versions: of these tensors.
        device: what devices copy, and the versions of that; None: nothing.
        then: called in the copying thread, once, with the seconds that a step was held back and with what went wrong.
        gate: called before each piece is copied; for tests.
        clock: for measuring.
    """

    def __init__(
        self,
        work: Sequence[tuple[torch.Tensor, memoryview]],
        versions: Versions,
        device: tuple[DevicePart, Versions] | None,
        *,
        then: Callable[[float, Exception | None], None],
        gate: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._pieces = collections.deque(_pieces(work))
        self._versions = versions
        self._device = device
        self._then = then
        self._gate = gate
        self._clock = clock
        self._lock = threading.Lock()
        self._helping = 0
        self._idle = threading.Condition(self._lock)
        self._waiting_since: float | None = None
        self._held_back = 0.0
        self._given_up = ""
        self._error: Exception | None = None
        self._copied = threading.Event()
        self.done = threading.Event()
        """Set when ``then`` has been called."""

    def hold_step(self, alive: Callable[[], bool]) -> None:
        """Return when an optimizer may step: the copy is complete, or given up. This thread copies, too.

        Args:
            alive: whether the thread that copies still lives.
        """
        if not self._copied.is_set():
            with self._lock:
                began = self._clock.monotonic()
                self._waiting_since = began if self._waiting_since is None else self._waiting_since
            self._help()
            while not self._copied.wait(_LOOK):
                if not alive():
                    self.give_up("the thread that copies ended")
                    return
                if self._clock.monotonic() - began > _LONGEST_WAIT:
                    self.give_up(f"the copy was not complete within {_LONGEST_WAIT:.0f} s")
                    return
        if self._device is not None:
            part, versions = self._device
            versions.moved()
            part.let_step()

    def give_up(self, reason: str) -> None:
        """What was copied is not to be used."""
        self._given_up = self._given_up or reason

    def run(self) -> None:
        """Copy; in the copying thread."""
        self._copy(_move)
        with self._lock:
            while self._helping:
                self._idle.wait()
            if self._waiting_since is not None:
                self._held_back = self._clock.monotonic() - self._waiting_since
            moved = self._versions.moved()
            self._copied.set()
        moved = self._finish_device() or moved
        self.end(self._outcome(moved))

    def end(self, error: Exception | None) -> None:
        """Tell how it ended, the first time this is called."""
        with self._lock:
            if self.done.is_set():
                return
            self.done.set()
        self._copied.set()
        try:
            self._then(self._held_back, error)
        except Exception:  # noqa: BLE001 - the next snapshot needs the thread
            _log.exception("unbroken: a staged state could not be handed on")

    def _help(self) -> None:
        """In a thread that would only wait: the training's threads are free now, and torch's copy uses them."""
        with self._lock:
            self._helping += 1
        try:
            self._copy(_spread)
        finally:
            with self._lock:
                self._helping -= 1
                self._idle.notify_all()

    def _copy(self, copy: Callable[[Piece], None]) -> None:
        """Copy piece after piece, whichever thread is quicker, until none is left."""
        while not self._given_up and self._error is None:
            try:
                piece = self._pieces.popleft()
            except IndexError:
                return
            try:
                self._gate()
                copy(piece)
            except Exception as error:  # noqa: BLE001 - whoever waits for the snapshot is told
                self._error = error
            except BaseException:  # an interrupt from the keyboard: the piece is lost
                self.give_up("the copy was interrupted")
                raise

    def _finish_device(self) -> str:
        if self._device is None:
            return ""
        part, versions = self._device
        try:
            part.finish()
        except Exception as error:  # noqa: BLE001 - as above
            self._error = self._error or error
        return versions.moved()

    def _outcome(self, moved: str) -> Exception | None:
        if self._error is not None:
            return self._error
        if self._given_up:
            return SnapshotSpoiled(f"the staging was given up: {self._given_up}", kind="spoiled")
        if moved:
            return SnapshotSpoiled(
                f"{moved} was changed between a step boundary and the next optimizer step, while it was copied",
                kind="spoiled", hint="Staging copies at once from now on; overlap=False does so from the start",
            )  # fmt: skip
        return None


class CopyingThread:
    """Runs one deferred copy after another. Begins with the first."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[DeferredCopy | None] = queue.SimpleQueue()
        self._under_way: list[DeferredCopy] = []
        self._thread: threading.Thread | None = None

    def submit(self, copy: DeferredCopy) -> None:
        """Have it run after those before it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="unbroken-staging", daemon=True)
            self._thread.start()
        self._under_way.append(copy)
        self._queue.put(copy)

    def hold_step(self) -> None:
        """Return when an optimizer may step."""
        for copy in tuple(self._under_way):
            copy.hold_step(self.alive)
        if self._under_way and not self.alive():
            self._abandon("its thread ended")

    def finish(self, seconds: float) -> bool:
        """Whether all that was submitted is done within ``seconds``. Nothing more may be submitted."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(seconds)
        return not self.alive()

    def close(self) -> None:
        """Give up what is not done, and end; after :meth:`finish`."""
        for copy in tuple(self._under_way):
            copy.give_up("the training ends")
        if self._thread is not None:
            self._thread.join(_LAST_WORDS_SECONDS)
        if not self.alive():
            self._abandon("its thread ended")

    def _abandon(self, reason: str) -> None:
        while self._under_way:
            copy = self._under_way.pop()
            copy.end(SnapshotSpoiled(f"the staging was given up: {reason}", kind="spoiled"))

    def alive(self) -> bool:
        """Whether the thread runs; False before the first copy, too."""
        return self._thread is not None and self._thread.is_alive()

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # some sandboxes refuse it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (copy := self._queue.get()) is not None:
            copy.run()
            self._under_way.remove(copy)
            del copy  # it keeps the state's old tensors alive


def _address(target: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(target))
