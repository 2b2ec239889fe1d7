"""Reading straight into memory that the caller has, for stores that can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class ReadsInto(Protocol):
    """A :class:`~unbroken.store.Store` that needs no memory of its own between the storage and the reader's."""

    def read_into(self, key: str, start: int, targets: Sequence[memoryview]) -> None:
        """Fill ``targets`` (writable, 1-D, of bytes) one after another with the bytes from ``start``.

        Raises:
            NotFoundError: nothing is at ``key``.
            DamagedError: the object ends before the targets are full; what they hold then is not defined.
        """
