"""Stores in folders, on local and network file systems."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unbroken.errors import AccessError, NotFoundError, StoreError, UnbrokenError
from unbroken.store.store import Buffer, ObjectInfo, OnPiece, Pieces, check_key, truncated
from unbroken.store.uncached import write_file

PARTIAL = ".partial"
"""Folder below the run's for files that are being written, where the file system has no unnamed files. No
object."""

_VECTORS = 1024
"""How many targets the system fills with one read (``IOV_MAX``)."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


class FolderStore:
    """A :class:`~unbroken.store.Store` in a folder.

    An object gets its name only when its bytes are on the disk, and a write returns only when the name is,
    too: after a loss of power every object is there whole or not at all.

    Args:
        folder: an absolute path; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def uri(self) -> str:
        return str(self._folder)

    def create(self, key: str, data: bytes) -> bool:
        with self._translated("put", key):
            path = self._make_way(key)
            with _synced_file(self._folder, path.parent, Pieces([data])) as source:
                try:
                    _link(source, path)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno in _NO_LINKS:
                        raise self._cannot_create(error) from error
                    raise
            self._sync_folders(path)
        return True

    def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
        pieces = Pieces(parts, on_piece)
        with self._translated("put", key, pieces):
            path = self._make_way(key)
            with _synced_file(self._folder, path.parent, pieces) as source:
                try:
                    _link(source, path)
                except FileExistsError:
                    _replace(source, path, self._folder)
            self._sync_folders(path)

    def get(self, key: str) -> bytes:
        with self._translated("get", key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        with self._translated("get", key):
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = _read(descriptor, start, length)
            finally:
                os.close(descriptor)
        if len(data) < length:
            raise truncated(key, self.uri, start, length)
        return memoryview(data)

    def read_into(self, key: str, start: int, targets: Sequence[memoryview]) -> None:
        """As :class:`~unbroken.store.direct.ReadsInto` says."""
        with self._translated("get", key):
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                missing = _fill(descriptor, start, targets)
            finally:
                os.close(descriptor)
        if missing:
            raise truncated(key, self.uri, start, sum(len(target) for target in targets))

    def written_at(self, key: str) -> float:
        """As :class:`~unbroken.store.dated.Dated` says; on a network file system it is the server's clock."""
        with self._translated("get", key):
            return self._path(key).stat().st_mtime

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        with self._translated("list", prefix):
            if not self._folder.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            top = self._path(prefix) if prefix else self._folder
            found = [info for info in self._walk(top) if info.key > after]
        yield from sorted(found, key=lambda info: info.key)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with self._translated("delete", key), contextlib.suppress(FileNotFoundError):
                self._path(key).unlink()

    def _path(self, key: str) -> Path:
        check_key(key)
        return self._folder / key

    def _make_way(self, key: str) -> Path:
        path = self._path(key)
        if not self._folder.is_dir():  # a mount that went away must not be mistaken for an empty run
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _walk(self, top: Path) -> Iterator[ObjectInfo]:
        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise error

        for folder, below, files in os.walk(top, onerror=fail):
            if Path(folder) == self._folder and PARTIAL in below:
                below.remove(PARTIAL)
            for name in files:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # deleted since
                    yield ObjectInfo(path.relative_to(self._folder).as_posix(), path.stat().st_size)

    def _sync_folders(self, path: Path) -> None:
        for parent in path.parents:
            sync_folder(parent)
            if parent == self._folder:
                break

    @contextmanager
    def _translated(self, action: str, key: str, pieces: Pieces | None = None) -> Iterator[None]:
        """Turn the system's errors into ours; what a listener to ``pieces`` raised stays as it is."""
        try:
            yield
        except UnbrokenError:
            raise
        except OSError as error:
            if pieces is not None and error is pieces.raised:
                raise
            raise self._failed(action, key, error) from error

    def _failed(self, action: str, key: str, error: OSError) -> UnbrokenError:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if missing and not self._folder.is_dir():
            return NotFoundError(
                f"the folder {self.uri} does not exist",
                kind="folder",
                hint="Is its file system still mounted?",
            )
        if missing and action == "get":
            return NotFoundError(f"there is no {key} in {self.uri}", kind="object")
        what = f"{action} of {key or 'everything'} in {self.uri} failed: {error.strerror or error}"
        if error.errno in _FULL:
            return StoreError(what, kind="full", hint="Free space or prune checkpoints")
        if error.errno in _DENIED:
            return AccessError(what, kind="denied", hint="Give this user write access there")
        return StoreError(what, kind="unavailable")

    def _cannot_create(self, error: OSError) -> StoreError:
        return StoreError(
            f"the file system of {self.uri} has no hard links ({error.strerror}), "
            "so no file can be made there whole or not at all",
            kind="create-only",
            hint="Two attempts could both believe that they own the run. Use a Linux or NFS file system, or a bucket",
        )


def sync_folder(path: Path) -> None:
    """Return when the folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _synced_file(folder: Path, beside: Path, pieces: Pieces) -> Iterator[Path]:
    """A synced file that vanishes unless it is linked: a killed process leaves nothing behind."""
    try:
        descriptor = os.open(beside, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in _NO_UNNAMED_FILES:
            raise
        with _named_file(folder, pieces) as partial:
            yield partial
        return
    try:
        write_file(descriptor, pieces, pieces.size)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@contextmanager
def _named_file(folder: Path, pieces: Pieces) -> Iterator[Path]:
    """A synced file in the partial folder, removed at the end unless it was moved."""
    (folder / PARTIAL).mkdir(exist_ok=True)
    partial = folder / PARTIAL / secrets.token_hex(16)
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        try:
            write_file(descriptor, pieces, pieces.size)
        finally:
            os.close(descriptor)
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _link(source: Path, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a folder descriptor Python calls linkat(2) with AT_SYMLINK_FOLLOW, which an unnamed file needs.
        os.link(source, path.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _replace(source: Path, path: Path, folder: Path) -> None:
    (folder / PARTIAL).mkdir(exist_ok=True)
    partial = folder / PARTIAL / secrets.token_hex(16)
    _link(source, partial)
    partial.replace(path)


def _read(descriptor: int, start: int, length: int) -> bytes:
    """Up to ``length`` bytes from ``start``; fewer where the file ends."""
    data = os.pread(descriptor, length, start)
    while len(data) < length:  # the system reads at most 2 GiB at a time
        more = os.pread(descriptor, length - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


def _fill(descriptor: int, start: int, targets: Sequence[memoryview]) -> int:
    """Read from ``start`` into the targets; how many of their bytes the file does not have."""
    left = [target for target in targets if len(target)]
    while left:
        count = os.preadv(descriptor, left[:_VECTORS], start)
        if not count:
            break
        start += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]
    return sum(len(target) for target in left)
