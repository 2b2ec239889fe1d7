"""The face of a store: what every layer above may ask of a bucket or a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from unbroken.errors import DamagedError, StoreError

Buffer: TypeAlias = "bytes | bytearray | memoryview"
OnPiece: TypeAlias = Callable[[int], None]

PIECE = 16 << 20
"""Bytes between two moments at which a put may be stopped: the most that is sent or written at a time."""


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

    def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
        """Store the concatenation of ``parts`` (1-D, contiguous, of bytes) at ``key``, whole or not at all.

        For keys that no one else writes; an object already there is replaced.

        Args:
            on_piece: called, in the thread of this call, before each piece of at most :data:`PIECE` bytes is sent or
                written, with its size in bytes; the sizes add up to the object's. What it raises ends the put: nothing
                becomes visible at ``key``, and the very exception comes out of here, whatever its class.
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


class Pieces:
    """The content of one put, cut into pieces; ``on_piece`` is told of each before it is given out."""

    def __init__(self, parts: Sequence[Buffer], on_piece: OnPiece | None = None) -> None:
        self._views = [memoryview(part).cast("B") for part in parts]
        self._on_piece = on_piece
        self.raised: BaseException | None = None
        """What ``on_piece`` raised: a store hands it on as it is, and takes no error of its own for it."""

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(map(len, self._views))

    def __iter__(self) -> Iterator[memoryview]:
        for view in self._views:
            for start in range(0, len(view), PIECE):
                piece = view[start : start + PIECE]
                self._tell(len(piece))
                yield piece

    def joined(self) -> bytes:
        """All as one piece."""
        self._tell(self.size)
        return b"".join(self._views)

    def _tell(self, size: int) -> None:
        if self._on_piece is None:
            return
        try:
            self._on_piece(size)
        except BaseException as error:
            self.raised = error
            raise


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
