"""Taking a checkpoint's bytes from this machine's memory, where they still lie since they were staged.

What lies there is compared with the manifest chunk by chunk, as if it came from the store; what differs is left for the
store.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence

from unbroken.checkpoint.chunks import named
from unbroken.checkpoint.copying import copy_checked
from unbroken.checkpoint.parallel import in_threads
from unbroken.checkpoint.pieces import WantedChunk

_log = logging.getLogger("unbroken")

_COPIERS = 8
"""Threads that copy, at most: no more than a few are needed to fill the way to memory."""


def take_from_memory(
    chunks: Sequence[WantedChunk],
    staged: Mapping[tuple[str, tuple[int, ...]], memoryview],
    on_bytes: Callable[[int], None],
) -> list[WantedChunk]:
    """Copy chunks from ``staged``, the bytes of slices by the tensor's name and the slice's offset, to where they are
    wanted.

    Returns:
        the chunks that are missing there or differ from the manifest; what differs is said once in the log.
    """
    refused: list[WantedChunk] = []
    lock = threading.Lock()

    def take(chunk: WantedChunk) -> None:
        if _agrees(chunk, staged[chunk.holds, chunk.offset]):
            on_bytes(chunk.length)
            return
        with lock:
            refused.append(chunk)

    held = [chunk for chunk in chunks if (chunk.holds, chunk.offset) in staged]
    if held:
        threads = min(_COPIERS, len(os.sched_getaffinity(0)))
        in_threads(take, held, threads=threads, name="unbroken-copy")
    if refused:
        _log.warning(
            "unbroken: this machine's memory differs from the committed checkpoint in %s: the store is read for that",
            named(sorted(refused, key=lambda chunk: chunk.holds)),
        )
    return refused + [chunk for chunk in chunks if (chunk.holds, chunk.offset) not in staged]


def _agrees(chunk: WantedChunk, source: memoryview) -> bool:
    """Take a chunk from the bytes of its slice, if they are those of the manifest. They may change under our hands:
    only the copy is believed."""
    if source.nbytes != chunk.slice_length:
        return False
    room = chunk.room()
    if copy_checked(room, source.cast("B")[chunk.place : chunk.place + chunk.length]) != chunk.digest:
        return False
    chunk.spread(room)
    return True
