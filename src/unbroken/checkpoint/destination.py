"""A file or a folder that appears under its name whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from unbroken.errors import AccessError, ConfigError, NotFoundError, StoreError, UnbrokenError
from unbroken.store.folder import sync_folder

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_PREALLOCATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_EXPORTS = (".safetensors", ".safetensors.index.json", ".distcp", ".metadata")
"""How the names of files end that an export makes: nothing else is ever replaced."""


def demand_free(path: Path, *, force: bool, folder: bool) -> None:
    """Refuse a destination that is in use, before anything is read for it.

    Args:
        force: replace an earlier export.
        folder: the destination is to be a folder.

    Raises:
        ConfigError: something is there that must not be replaced.
        NotFoundError: the folder around it is not there.
    """
    if not path.parent.is_dir():
        raise NotFoundError(f"there is no folder {path.parent}", kind="folder", hint="Make it first")
    if not path.exists() and not path.is_symlink():
        return
    if folder and path.is_dir() and not path.is_symlink():
        others = [entry.name for entry in path.iterdir() if not _exported(entry)]
        if others:
            raise ConfigError(
                f"{path} holds {others[0]}, which no export made", kind="destination", hint="Name a new folder"
            )
        if force or not any(path.iterdir()):
            return
    elif force and not folder and path.is_file():
        return
    elif folder or not path.is_file():
        what = "no folder" if folder else "no file"
        raise ConfigError(f"{path} is there and is {what}", kind="destination", hint="Name another path")
    raise ConfigError(f"{path} is there already", kind="destination", hint="Name another path, or say --force")


def _exported(entry: Path) -> bool:
    return entry.is_file() and entry.name.endswith(_EXPORTS)


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; it takes the name ``path`` when the block ends without an error.

    The block syncs what it writes. A process that is killed leaves at most a hidden file that ends in ``.partial``.

    Raises:
        ConfigError: something is at ``path``.
        StoreError: the file system failed or is full.
    """
    partial = _beside(path, "partial")
    with _translated(path):
        try:
            yield partial
            demand_free(path, force=force, folder=False)
            partial.replace(path)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty folder beside ``path`` to fill; it takes the name ``path`` when the block ends without an error.

    As :func:`new_file`. An earlier export that is replaced is away for the moment between two renames.
    """
    partial = _beside(path, "partial")
    with _translated(path):
        try:
            partial.mkdir()
            yield partial
            sync_folder(partial)
            demand_free(path, force=force, folder=True)
            _swap(partial, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, path: Path) -> None:
    if not path.exists() or not any(path.iterdir()):
        partial.rename(path)
        return
    old = _beside(path, "replaced")
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{what}")


def reserve(file: IO[bytes], size: int) -> None:
    """Take the room for ``size`` bytes at once: a disk that is too small is found before anything is read."""
    if size:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _NO_PREALLOCATION:
                raise


def sync(file: IO[bytes]) -> None:
    """Return when the file's bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except UnbrokenError:
        raise
    except OSError as error:
        what = f"{path} could not be written: {error.strerror or error}"
        if error.errno in _FULL:
            raise StoreError(what, kind="full", hint="Free space, or export elsewhere") from error
        if error.errno in _DENIED:
            raise AccessError(what, kind="denied", hint="Choose a folder that this user may write") from error
        raise StoreError(what, kind="destination") from error
