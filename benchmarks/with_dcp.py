"""``torch.distributed.checkpoint``: ``save``, and ``async_save`` from a thread or from a process.

State and restore as its documentation has them: ``get_state_dict``, ``load`` in place, ``set_state_dict``.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed
import torch.distributed.checkpoint as dcp
from method import Place
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from training_state import Training

_LONGEST_SAVE = 600.0
_THREADS = 2


class Dcp:
    """A folder for each checkpoint; files and metadata are synced by its writer.

    Args:
        place: where to.
        training: what.
        how: ``"save"``, ``"thread"`` or ``"process"``.
    """

    def __init__(self, place: Place, training: Training, how: str) -> None:
        self.place = place
        self._training = training
        self._how = how
        self._pending: Future[Any] | None = None
        self._durable: list[float] = []

    def open(self, every: int) -> None:  # noqa: ARG002 - the loop says when
        one_rank_group()

    def writer(self, step: int) -> Any:
        """The storage writer of a checkpoint."""
        return dcp.FileSystemWriter(str(Path(self.place.folder, f"{step:06d}")), thread_count=_THREADS)

    def reader(self) -> Any:
        """The storage reader of the newest checkpoint."""
        newest = max(path.parent for path in Path(self.place.folder).glob("*/.metadata"))
        return dcp.FileSystemReader(str(newest))

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self._training.model, self._training.optimizer)
        return {"model": model, "optimizer": optimizer}

    def boundary(self, step: int, *, due: bool) -> bool:
        if self._pending is not None and self._pending.done():
            self._pending.result()
            self._pending = None
        if not due or self._pending is not None:
            return False
        if self._how == "save":
            dcp.save(self._state(), storage_writer=self.writer(step))
            self._durable.append(time.time())
            return True
        kind = AsyncCheckpointerType.THREAD if self._how == "thread" else AsyncCheckpointerType.PROCESS
        self._pending = dcp.async_save(self._state(), storage_writer=self.writer(step), async_checkpointer_type=kind)
        self._pending.add_done_callback(lambda _: self._durable.append(time.time()))
        return True

    def close(self) -> list[float]:
        if self._pending is not None:
            self._pending.result(_LONGEST_SAVE)
        return self._durable

    def restore(self) -> dict[str, Any]:
        began = time.monotonic()
        self.open(0)
        ready = time.monotonic()
        state = self._state()
        dcp.load(state, storage_reader=self.reader())
        set_state_dict(
            self._training.model, self._training.optimizer,
            model_state_dict=state["model"], optim_state_dict=state["optimizer"],
        )  # fmt: skip
        ended = time.monotonic()
        return {"restore": ended - ready, "open_and_restore": ended - began}


def one_rank_group() -> None:
    """A process group of this process alone, as these libraries ask for one."""
    if torch.distributed.is_initialized():
        return
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    store = torch.distributed.TCPStore("127.0.0.1", 0, 1, is_master=True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
