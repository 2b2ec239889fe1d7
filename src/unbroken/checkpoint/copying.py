"""Copying bytes to where they will be used, and the digest of what arrived there."""

from __future__ import annotations

import ctypes

import xxhash

_PIECE = 256 << 10
"""Bytes copied before they are digested: few enough that they still lie in a core's cache."""


def copy_checked(target: memoryview, source: memoryview) -> str:
    """Copy ``source`` into ``target`` (both 1-D, of bytes, of the same length).

    Returns:
        the digest of the bytes in ``target``, read back from there, as :func:`~unbroken.checkpoint.digest.digest` gives
        it.

    Raises:
        ValueError: they are not of the same length.
    """
    if len(target) != len(source):
        raise ValueError(f"{len(source)} bytes do not fit into {len(target)}")
    hasher = xxhash.xxh3_128()
    # An address is only to be had of memory that may be written; what a store hands out may not.
    by_address = not source.readonly and len(source) > 0
    to, origin = (_address(target), _address(source)) if by_address else (0, 0)
    for start in range(0, len(target), _PIECE):
        piece = target[start : start + _PIECE]
        if by_address:  # unlike an assignment it lets other threads run Python meanwhile
            ctypes.memmove(to + start, origin + start, len(piece))
        else:
            piece[:] = source[start : start + _PIECE]
        hasher.update(piece)
    return hasher.hexdigest()


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
