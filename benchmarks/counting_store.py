"""A store in memory that counts requests, by their kind and by what they ask for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence

from unbroken.errors import NotFoundError
from unbroken.store import ObjectInfo
from unbroken.store.store import Buffer, OnPiece, Pieces

PAGE = 1000
"""Keys in a page of a listing, each of which is a request."""


class CountingStore:
    """Objects in a dictionary. Counts are by words such as ``get ranks``: the method, and the key's first part."""

    uri = "memory:counting"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        """Bytes that were read, by the key's first part."""

    def forget(self) -> None:
        """Count from zero."""
        self.requests.clear()
        self.received.clear()

    def size(self, key: str) -> int:
        """Bytes of an object; not counted."""
        return len(self._objects[key])

    def create(self, key: str, data: bytes) -> bool:
        with self._lock:
            self._count("create", key)
            if key in self._objects:
                return False
            self._objects[key] = bytes(data)
            return True

    def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
        pieces = Pieces(parts, on_piece)
        data = pieces.joined()
        with self._lock:
            self._count("put", key)
            self._objects[key] = data

    def get(self, key: str) -> bytes:
        with self._lock:
            self._count("get", key)
            if key not in self._objects:
                raise NotFoundError(f"nothing is at {key}", kind="object")
            data = self._objects[key]
            self.received[_folder(key)] += len(data)
        return data

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        with self._lock:
            self._count("get", key)
            if key not in self._objects:
                raise NotFoundError(f"nothing is at {key}", kind="object")
            self.received[_folder(key)] += length
            return memoryview(self._objects[key])[start : start + length]

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix + "/") and key > after)
            self._count("list", prefix, max(1, -(-len(keys) // PAGE)))
            return iter([ObjectInfo(key, len(self._objects[key])) for key in keys])

    def delete(self, keys: Sequence[str]) -> None:
        with self._lock:
            for key in keys:
                self._count("delete", key)
                self._objects.pop(key, None)

    def _count(self, method: str, key: str, requests: int = 1) -> None:
        self.requests[f"{method} {_folder(key)}"] += requests


def _folder(key: str) -> str:
    return key.partition("/")[0]
