"""Digests: xxh3-128 of each 16 MiB of tensor bytes, and SHA-256 of the small objects that name them.

xxh3-128 finds damage (a flipped bit, a truncated or swapped object) at memory speed. It is no defence against
somebody who may write to the bucket; SHA-256 in the journal covers the manifest.
"""

from __future__ import annotations

import hashlib

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


def chunk_count(length: int) -> int:
    """How many digests ``length`` bytes have."""
    return -(-length // CHUNK)


def sha256(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
