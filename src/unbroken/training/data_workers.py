"""What runs in the worker processes of a DataLoader: a shield from signals, and random numbers that come back."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import Any

import torch
from torch.utils.data import get_worker_info

SHIELDED = (signal.SIGTERM, signal.SIGINT)
"""What a scheduler, torchrun or a keyboard sends to the whole process group. The trainer decides what it means."""


class PlacedBatch(list[int]):
    """Samples of one batch, and where in the stream of all samples they begin.

    Args:
        samples: numbers of the samples.
        position: of the first of them.
    """

    def __init__(self, samples: list[int], position: int) -> None:
        super().__init__(samples)
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacedBatch, (list(self), self.position)


class RepeatableDataset:
    """Seeds the global generators of a worker for each batch, by the batch's place in the stream of samples.

    Else what a dataset draws (an augmentation) would depend on how many batches this worker process has loaded since
    it began, and a resumed training would see other pictures than one that was never interrupted.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self._seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, batch: PlacedBatch) -> list[Any]:
        """The samples of a batch, as torch asks for them."""
        text = f"unbroken worker: seed {self._seed}, position {batch.position}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed(seed & 0xFFFFFFFF)
        together = getattr(self.dataset, "__getitems__", None)
        return together(list(batch)) if callable(together) else [self.dataset[number] for number in batch]


class WorkerShield:
    """A ``worker_init_fn`` that keeps a worker alive through signals to its process group.

    A worker that dies of the SIGTERM that announces an interruption makes the loop fail in its next batch, and the save
    of the last step never happens. Only the trainer may end it, after :attr:`release`; and where the trainer
    is killed, torch's watchdog in the worker ends it within seconds.

    Args:
        before: the program's own ``worker_init_fn``; called after the shield is up.
    """

    def __init__(self, before: Callable[[int], Any] | None) -> None:
        self._before = before
        self._released = RawValue("b", 0)

    def __call__(self, worker: int) -> None:
        """Put up the shield, in a worker process."""
        for number in SHIELDED:
            # A handler, not SIG_IGN, and no blocking: both would go on to programs that the dataset starts.
            signal.signal(number, self._heard)
            signal.siginterrupt(number, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHIELDED)
        info = get_worker_info()
        if info is not None and isinstance(info.dataset, RepeatableDataset):
            # The program's own functions look for its dataset there; the fields are frozen.
            object.__setattr__(info, "dataset", info.dataset.dataset)
        if self._before is not None:
            self._before(worker)

    def _heard(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as Python calls handlers
        if number == signal.SIGTERM and self._released.value:
            os._exit(0)  # as torch's own handler does for a SIGTERM of the parent

    def release(self) -> None:
        """From now on, a SIGTERM ends the workers: the trainer has no more use for them."""
        self._released.value = 1

    def release_with(self, owner: object) -> None:
        """Release when ``owner`` is gone, or the process ends: multiprocessing then ends its workers with SIGTERM, and
        waits for them without a limit."""
        weakref.finalize(owner, _release, self._released, os.getpid())


def _release(released: Any, process: int) -> None:
    if os.getpid() == process:  # a forked worker has a copy of the owner
        released.value = 1


@contextmanager
def held_back() -> Iterator[None]:
    """Signals to the group wait while workers are being started: between its start and its shield, one would kill a
    worker. A forked or spawned child begins with these blocked, as this thread has them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
