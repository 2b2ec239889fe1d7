"""Digests: xxh3-128 of each 16 MiB of tensor bytes, and SHA-256 of the small objects that name them.

xxh3-128 finds damage (a flipped bit, a truncated or swapped object) at memory speed. It is no defence against
somebody who may write to the bucket; SHA-256 in the journal covers the manifest.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

import xxhash

from unbroken.store.store import Buffer

CHUNK = 16 << 20
"""Bytes of a chunk, a constant of format version 1."""


def digest(data: Buffer) -> str:
    """xxh3-128 of some bytes: its canonical (big-endian) form in hex, the same on every machine."""
    return xxhash.xxh3_128_hexdigest(data)


def chunk_digests(data: Buffer) -> list[str]:
    """The digest of each chunk; an empty list for no bytes."""
    view = memoryview(data).cast("B")
    return [digest(view[start : start + CHUNK]) for start in range(0, len(view), CHUNK)]


def agree(data: Buffer, known: Sequence[str], found: list[str]) -> bool:
    """Whether ``data`` has the digests ``known``.

    Those that were taken to find out, up to the first that differs, are appended to ``found``, an empty list.
    """
    view = memoryview(data).cast("B")
    if chunk_count(len(view)) != len(known):
        return False
    for number, expected in enumerate(known):
        found.append(digest(view[number * CHUNK : (number + 1) * CHUNK]))
        if found[-1] != expected:
            return False
    return True


class DigestsOnTheWay:
    """Digests of tensors that are put one after another: each chunk's is taken just before the chunk is sent.

    While one chunk is digested others are under way, and what was digested is sent out of the processor's cache.

    Args:
        tensors: bytes of each, and the list that receives its digests; those that are in it are not taken again.
        skip: bytes that are sent before the first tensor.
    """

    def __init__(self, tensors: Sequence[tuple[Buffer, list[str]]], *, skip: int = 0) -> None:
        self._chunks: deque[tuple[int, memoryview, list[str]]] = deque()
        start = skip
        for data, digests in tensors:
            view = memoryview(data).cast("B")
            for at in range(len(digests) * CHUNK, len(view), CHUNK):
                self._chunks.append((start + at, view[at : at + CHUNK], digests))
            start += len(view)
        self._announced = 0

    def advance(self, size: int) -> None:
        """Take the digests of what begins within the next ``size`` bytes."""
        self._announced += size
        while self._chunks and self._chunks[0][0] < self._announced:
            _, chunk, digests = self._chunks.popleft()
            digests.append(digest(chunk))

    def finish(self) -> None:
        """Take those that are left: a store need not announce what it sends."""
        while self._chunks:
            _, chunk, digests = self._chunks.popleft()
            digests.append(digest(chunk))


def chunk_count(length: int) -> int:
    """How many digests ``length`` bytes have."""
    return -(-length // CHUNK)


def sha256(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
