"""The face of a store: what every layer above may ask of a bucket or a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from unbroken.errors import DamagedError, StoreError

Buffer: TypeAlias = "bytes | bytearray | memoryview"


@dataclass(frozen=True)
class ObjectInfo:
    """An object as a listing gives it. ``key`` is relative to the store's prefix."""

    key: str
    size: int


class Store(Protocol):
    """Objects below one prefix. Keys are relative, ``/``-separated, without empty, ``.`` or ``..``
    components; a key that breaks this (read from a damaged manifest, say) is refused with a StoreError of
    the kind ``key``.

    Every method raises :class:`~unbroken.errors.AccessError` where the storage denies access and
    :class:`~unbroken.errors.StoreError` where it fails after retries. All are safe to call from any thread.
    """

    @property
    def uri(self) -> str:
        """Where this is, as the user wrote it, normalised; holds no secret."""

    def create(self, key: str, data: bytes) -> bool:
        """Put ``data`` only if no object is at ``key``: True when this call created it.

        False means that an object is there or is just being made by someone else. The someone may be this
        very call (its reply lost, its retry refused): that is for the caller to settle, by reading it back
        and comparing a nonce. After a StoreError it is not known whether the object was created.
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


def check_key(key: str) -> None:
    """Refuse a key that could lead out of the store.

    Raises:
        StoreError: of the kind ``key``.
    """
    if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise StoreError(f"{key!r} is no key: it has an empty, '.' or '..' component", kind="key")


def truncated(key: str, uri: str, start: int, length: int) -> DamagedError:
    """The error of a range that runs over the end of an object."""
    return DamagedError(f"{key} in {uri} ends before byte {start + length}, which was asked for", kind="truncated")
