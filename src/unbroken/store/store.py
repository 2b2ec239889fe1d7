"""The face of a store: what every layer above may ask of a bucket or a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Buffer: TypeAlias = "bytes | bytearray | memoryview"


@dataclass(frozen=True)
class ObjectInfo:
    """An object as a listing gives it. ``key`` is relative to the store's prefix."""

    key: str
    size: int


class Store(Protocol):
    """Objects below one prefix. Keys are relative, ``/``-separated, and never begin with ``/``.

    Every method raises :class:`~unbroken.errors.AccessError` where the storage denies access and
    :class:`~unbroken.errors.StoreError` where it fails after retries. All are safe to call from any thread.
    """

    @property
    def uri(self) -> str:
        """Where this is, as the user wrote it, normalised; holds no secret."""

    def create(self, key: str, data: bytes) -> bool:
        """Put ``data`` only if no object is at ``key``: True when this call, or a lost reply of it, created it.

        False means that an object is there. Whether it was made by this very call (its reply lost, a retry refused) is for the
        caller to settle: read it back and compare a nonce.
        """

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Store the concatenation of ``parts`` (1-D, contiguous, of bytes) at ``key``, whole or not at all.

        For keys that no one else writes; an object already there is replaced.
        """

    def get(self, key: str) -> bytes:
        """The whole object.

        Raises:
            NotFoundError: nothing is at ``key``.
        """

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        """``length`` bytes from ``start``.

        Raises:
            NotFoundError: nothing is at ``key``.
            DamagedError: the object ends before ``start + length``.
        """

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key begins with ``prefix`` (a whole path component), in order of their keys.

        ``after`` leaves out the keys up to and including it. Follows the storage's paging to its end.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is not there counts as deleted."""
