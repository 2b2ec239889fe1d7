"""DLRover's flash checkpoint: a copy into shared memory in the loop, and a process that writes it to a folder.

Without its launcher and master, as a program started with ``python`` uses it. It writes without fsync: what is called
durable here is its own word, the step in its tracker file.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from method import Place
from process_costs import MARK
from training_state import Training

# It names its shared memory and sockets by this, so that two programs on one machine do not meet.
os.environ["TORCHELASTIC_RUN_ID"] = os.environ.get(MARK, "benchmark")
os.environ.setdefault("DLROVER_LOG_LEVEL", "WARNING")

from dlrover.trainer.torch.flash_checkpoint.checkpointer import StorageType
from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer
from dlrover.trainer.torch.flash_checkpoint.engine import CheckpointEngine, start_saver_process

# It forks its saver when the checkpointer is made. Once torch had threads that failed in 2 of 8 tries, and in none of 8
# before; so it is started when this is imported, before there is a training.
CheckpointEngine.saver_proc = start_saver_process()

_TRACKER = "dlrover_latest.txt"
_POLL_SECONDS = 0.005
_LONGEST_SAVE = 600.0


class DLRover:
    """``DdpCheckpointer`` with ``StorageType.DISK``."""

    def __init__(self, place: Place, training: Training) -> None:
        self._folder = place.folder
        self._training = training
        self._waiting: threading.Thread | None = None
        self._durable: list[float] = []
        self._failed: Exception | None = None

    def open(self, every: int) -> None:  # noqa: ARG002 - the loop says when
        self._checkpointer = DdpCheckpointer(self._folder)

    def boundary(self, step: int, *, due: bool) -> bool:
        if not due or (self._waiting is not None and self._waiting.is_alive()):
            return False
        self._checkpointer.save_checkpoint(step, self._training.state(), storage_type=StorageType.DISK)
        self._waiting = threading.Thread(target=self._wait, args=(step,))
        self._waiting.start()
        return True

    def _wait(self, step: int) -> None:
        deadline = time.monotonic() + _LONGEST_SAVE
        tracker = Path(self._folder, _TRACKER)
        while time.monotonic() < deadline:
            if tracker.exists() and tracker.read_text().strip() == str(step):
                self._durable.append(time.time())
                return
            time.sleep(_POLL_SECONDS)
        self._failed = TimeoutError(f"step {step} was not written within {_LONGEST_SAVE:.0f} s")

    def close(self) -> list[float]:
        if self._waiting is not None:
            self._waiting.join()
        if self._failed is not None:
            raise self._failed
        return self._durable

    def restore(self) -> dict[str, Any]:
        """From the folder: the process that held the shared memory went with the trainer that saved."""
        began = time.monotonic()
        checkpointer = DdpCheckpointer(self._folder)
        ready = time.monotonic()
        self._training.load(checkpointer.load_checkpoint())
        ended = time.monotonic()
        return {"restore": ended - ready, "open_and_restore": ended - began}
