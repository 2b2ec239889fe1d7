"""Threads that share out work, of which the first error stops all and reaches the caller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")


def in_threads(work: Callable[[Item], None], items: Iterable[Item], *, threads: int, name: str) -> None:
    """Call ``work`` with every item; returns, or raises, when no thread is left.

    After an error, and after a KeyboardInterrupt of the caller, no further item is begun.

    Args:
        threads: how many calls at once.
        name: what the threads' names begin with.
    """
    stop = threading.Event()

    def begin(item: Item) -> None:
        if stop.is_set():
            return
        try:
            work(item)
        except BaseException:
            stop.set()  # at once: the caller wakes up only after others have taken their next item
            raise

    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        futures: list[Future[None]] = []
        try:
            futures.extend(pool.submit(begin, item) for item in items)
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    future.result()
        finally:
            stop.set()
            for future in futures:
                future.cancel()
