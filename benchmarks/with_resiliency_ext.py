"""NVIDIA resiliency-ext: ``torch.save`` in its persistent worker process.

Its ``TorchAsyncCheckpoint`` asks for CUDA (``torch.cuda.synchronize``) before anything else; this does the same steps
(preload, an ``AsyncRequest``, its queue with a persistent worker) without that one call. The function that the worker
calls is ours: ``torch.save``, fsync, rename.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from method import Place
from nvidia_resiliency_ext.checkpointing.async_ckpt.core import AsyncCallsQueue, AsyncRequest
from nvidia_resiliency_ext.checkpointing.utils import preload_tensors
from training_state import Training
from with_dcp import one_rank_group
from with_torch_save import save_durably

_POLL_SECONDS = 0.005
_LONGEST_SAVE = 600.0


class ResiliencyExt:
    """``AsyncCallsQueue(persistent=True)``."""

    def __init__(self, place: Place, training: Training) -> None:
        self._folder = place.folder
        self._training = training
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[float] | None = None
        self._durable: list[float] = []

    def open(self, every: int) -> None:  # noqa: ARG002 - the loop says when
        one_rank_group()
        self._queue = AsyncCallsQueue(persistent=True)

    def boundary(self, step: int, *, due: bool) -> bool:
        if self._pending is not None and self._pending.done():
            self._durable.append(self._pending.result())
            self._pending = None
        if not due or self._pending is not None:
            return False
        path = Path(self._folder, f"checkpoint-{step:06d}.pt")
        state = preload_tensors(self._training.state())
        self._queue.schedule_async_request(AsyncRequest(save_durably, (state, path), []))
        self._pending = self._pool.submit(self._wait)
        return True

    def _wait(self) -> float:
        deadline = time.monotonic() + _LONGEST_SAVE
        while time.monotonic() < deadline:
            if self._queue.maybe_finalize_async_calls(blocking=False, no_dist=True):
                return time.time()
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"a save was not done within {_LONGEST_SAVE:.0f} s")

    def close(self) -> list[float]:
        if self._pending is not None:
            self._durable.append(self._pending.result())
        self._pool.shutdown()
        if self._queue.persistent_caller is not None:
            self._queue.persistent_caller.close()
        return self._durable

    def restore(self) -> dict[str, Any]:
        began = time.monotonic()
        path = max(Path(self._folder).glob("checkpoint-*.pt"))
        self._training.load(torch.load(path, map_location="cpu", weights_only=True))
        ended = time.monotonic()
        return {"restore": ended - began, "open_and_restore": ended - began}
