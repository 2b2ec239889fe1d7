"""Digests of tensor bytes: xxh3-128 of each chunk of 16 MiB.

xxh3-128 finds damage (a flipped bit, a truncated or swapped object) at memory speed. It is no defence against
somebody who may write to the bucket; SHA-256 in the journal covers the manifest.
"""

from __future__ import annotations

import xxhash

from unbroken.store.store import Buffer

CHUNK = 16 << 20
"""Bytes of a chunk, a constant of format version 1."""


def digest(data: Buffer) -> str:
    """xxh3-128 in hex of some bytes."""
    return xxhash.xxh3_128_hexdigest(data)


def chunk_digests(data: Buffer) -> list[str]:
    """The digest of each chunk; an empty list for no bytes."""
    view = memoryview(data).cast("B")
    return [digest(view[start : start + CHUNK]) for start in range(0, len(view), CHUNK)]
