"""Threads that share out work, of which the first error stops all and reaches the caller."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from threading import Event, Lock, Thread
from typing import TypeVar

Item = TypeVar("Item")


def in_threads(work: Callable[[Item], None], items: Iterable[Item], *, threads: int, name: str) -> None:
    """Call ``work`` with every item; returns, or raises, when no thread is left.

    After an error, and after a KeyboardInterrupt of the caller, no further item is begun.

    Args:
        threads: how many calls at once, at most.
        name: what the threads' names begin with.
    """
    # No ThreadPoolExecutor: interrupted while it starts a thread, it forgets to wait for that one.
    waiting, lock, stop = list(items)[::-1], Lock(), Event()
    errors: list[BaseException] = []

    def labour() -> None:
        while not stop.is_set():
            with lock:
                if not waiting:
                    return
                item = waiting.pop()
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001 - raised again where the work was asked for
                errors.append(error)
                stop.set()

    workers = [Thread(target=labour, name=f"{name}_{number}") for number in range(min(threads, len(waiting)))]
    begun: list[Thread] = []
    try:
        for worker in workers:
            begun.append(worker)
            worker.start()
        for worker in begun:
            worker.join()
    finally:
        stop.set()
        for worker in begun:
            with contextlib.suppress(RuntimeError):  # it could not be started
                worker.join()
    if errors:
        raise errors[0]
