"""Taking a checkpoint's bytes from this machine's memory, where they still lie since they were staged.

What lies there is compared with the manifest chunk by chunk, as if it came from the store; what differs is left for the
store.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence

from unbroken.checkpoint.chunks import Chunk, named
from unbroken.checkpoint.copying import copy_checked
from unbroken.checkpoint.parallel import in_threads

_log = logging.getLogger("unbroken")

_COPIERS = 8
"""Threads that copy, at most: no more than a few are needed to fill the way to memory."""


def take_from_memory(
    chunks: Sequence[Chunk],
    staged: Mapping[str, memoryview],
    memory: Mapping[str, memoryview],
    on_bytes: Callable[[int], None],
) -> list[Chunk]:
    """Copy chunks from ``staged`` to ``memory``, both the bytes of tensors by name.

    Returns:
        the chunks that are missing there or differ from the manifest; said once in the log.
    """
    held = {name for name, view in staged.items() if name in memory and view.nbytes == len(memory[name])}
    sources = {name: staged[name].cast("B") for name in held if staged[name].nbytes}
    refused: list[Chunk] = [chunk for chunk in chunks if chunk.holds not in sources]
    lock = threading.Lock()

    def take(chunk: Chunk) -> None:
        there = slice(chunk.place, chunk.place + chunk.length)
        if copy_checked(memory[chunk.holds][there], sources[chunk.holds][there]) == chunk.digest:
            on_bytes(chunk.length)
            return
        with lock:
            refused.append(chunk)

    wanted = [chunk for chunk in chunks if chunk.holds in sources]
    if wanted:
        threads = min(_COPIERS, len(os.sched_getaffinity(0)))
        in_threads(take, wanted, threads=threads, name="unbroken-copy")
    if refused:
        _log.warning(
            "unbroken: this machine's memory differs from the committed checkpoint in %s: the store is read for that",
            named(sorted(refused, key=lambda chunk: chunk.holds)),
        )
    return refused
