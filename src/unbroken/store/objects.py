"""Stores over obstore (the Rust ``object_store`` crate): buckets of every cloud, and folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from unbroken.errors import AccessError, DamagedError, NotFoundError, StoreError, UnbrokenError
from unbroken.store.store import Buffer, ObjectInfo

_PART = 16 << 20
_CONCURRENCY = 8
_WHOLE_PUT_LIMIT = 8 << 20

_FULL = ("no space left on device", "disk quota exceeded", "quotaexceeded", "xminiostoragefull")
_READ_ONLY = ("read-only file system", "operation not permitted", "permission denied")
_CREDENTIALS = ("credentials", "instance metadata", "169.254.169.254", "metadata.google.internal")
_DENIED = ("accessdenied", "403 forbidden", "status: 403", "invalidaccesskeyid", "signaturedoesnotmatch")


class ObjectStore:
    """A :class:`~unbroken.store.Store` over one obstore store whose prefix is the run's.

    Args:
        backend: an ``obstore`` store object.
        uri: what :attr:`uri` returns.
    """

    def __init__(self, backend: Any, uri: str) -> None:
        self._backend = backend
        self._uri = uri

    @property
    def uri(self) -> str:
        return self._uri

    def create(self, key: str, data: bytes) -> bool:
        with self._translated("put", key):
            try:
                obstore.put(self._backend, key, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        views = [memoryview(part).cast("B") for part in parts]
        size = sum(len(view) for view in views)
        with self._translated("put", key):
            if size <= _WHOLE_PUT_LIMIT:
                obstore.put(self._backend, key, b"".join(views), use_multipart=False)
            else:
                obstore.put(
                    self._backend, key, _pieces(views), chunk_size=_PART, max_concurrency=_CONCURRENCY
                )

    def get(self, key: str) -> bytes:
        with self._translated("get", key):
            return bytes(obstore.get(self._backend, key).bytes())

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        if length == 0:
            return memoryview(b"")
        with self._translated("get", key):
            data = memoryview(obstore.get_range(self._backend, key, start=start, length=length))
        if len(data) != length:
            # object_store gives the bytes there are and no error when a range runs over the end
            raise DamagedError(
                f"{key} in {self._uri} ends {length - len(data)} bytes before byte {start + length}", kind="truncated"
            )
        return data

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        with self._translated("list", prefix):
            found = [
                ObjectInfo(meta["path"], meta["size"])
                for page in obstore.list(self._backend, prefix or None, offset=after or None)
                for meta in page
            ]
        yield from sorted(found, key=lambda info: info.key)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with self._translated("delete", key):
                try:
                    obstore.delete(self._backend, key)
                except FileNotFoundError:
                    continue

    @contextmanager
    def _translated(self, action: str, key: str) -> Iterator[None]:
        """Turn obstore's errors into ours."""
        try:
            yield
        except UnbrokenError:
            raise
        except FileNotFoundError as error:
            raise self._not_found(action, key, error) from error
        except (BaseError, OSError, ValueError) as error:
            raise self._failed(action, key, error) from error

    def _not_found(self, action: str, key: str, error: Exception) -> UnbrokenError:
        if action == "get" and "nosuchbucket" not in str(error).lower():
            return NotFoundError(f"there is no {key} in {self._uri}", kind="object")
        return NotFoundError(
            f"the bucket or folder of {self._uri} does not exist", kind="bucket", hint="Create it, or mend the URI"
        )

    def _failed(self, action: str, key: str, error: Exception) -> StoreError:
        text = str(error)
        reason, lowered = _first_line(text), text.lower()
        what = f"{action} of {key or 'the listing'} in {self._uri} failed"
        if any(mark in lowered for mark in _FULL):
            return StoreError(f"{what}: no space is left ({reason})", kind="full", hint="Free space or prune checkpoints")
        if any(mark in lowered for mark in _READ_ONLY):
            return AccessError(f"{what}: {reason}", kind="denied", hint="Give this user or role write access there")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or any(m in lowered for m in _DENIED):
            return AccessError(
                f"{what}: access was denied ({reason})", kind="denied",
                hint="Check the credentials, and that the role may read, put and list below this prefix",
            )  # fmt: skip
        if any(mark in lowered for mark in _CREDENTIALS):
            return AccessError(
                f"{what}: no credentials were found ({reason})", kind="credentials",
                hint="Set the cloud's environment variables, log in to a profile, or attach a role",
            )  # fmt: skip
        return StoreError(f"{what}: {reason}", kind="unavailable")


class FolderStore(ObjectStore):
    """A store in a folder. A write returns once it is on the disk: the file and the folders above it are synced.

    Args:
        backend: an ``obstore.store.LocalStore`` at ``folder``.
        uri: what :attr:`uri` returns.
        folder: the folder itself.
    """

    def __init__(self, backend: Any, uri: str, folder: Path) -> None:
        super().__init__(backend, uri)
        self._folder = folder

    def create(self, key: str, data: bytes) -> bool:
        created = super().create(key, data)
        if created:
            self._sync(key)
        return created

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        super().put(key, parts)
        self._sync(key)

    def _sync(self, key: str) -> None:
        path = self._folder / key
        with self._translated("sync", key):
            _fsync(path)
            for parent in path.parents:
                _fsync(parent)
                if parent == self._folder:
                    break


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pieces(views: Sequence[memoryview]) -> Iterator[memoryview]:
    """The views in pieces of at most one part: obstore takes an iterator's pieces without copying them into a zeroed buffer."""
    for view in views:
        for start in range(0, len(view), _PART):
            yield view[start : start + _PART]


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line if len(line) <= 300 else line[:297] + "..."
