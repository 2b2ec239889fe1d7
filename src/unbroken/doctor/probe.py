"""Objects that a check writes below a run's prefix, and takes away again."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from unbroken.errors import UnbrokenError
from unbroken.store import Store, open_store, parse_uri

_PARTIAL = ".partial"
"""What a store in a folder makes for itself where the file system has no unnamed files."""


class Probe:
    """A store, and keys in it that nobody else has.

    Args:
        store: the run's.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = f"doctor-{secrets.token_hex(8)}"
        """Prefix of all its keys."""
        self.keys: list[str] = []
        """All that were given out."""
        self.written: list[str] = []
        """Those at which something is, as far as is known."""
        self.failure: UnbrokenError | None = None
        """Why its objects could not be deleted."""

    def key(self, name: str) -> str:
        """A new key; what is at it is deleted at the end."""
        key = f"{self.folder}/{name}"
        self.keys.append(key)
        return key

    def clean(self) -> None:
        """Delete what was written; :attr:`failure` says whether that went wrong."""
        try:
            self.store.delete(self.keys)
        except UnbrokenError as error:
            self.failure = error


@contextlib.contextmanager
def probing(uri: str) -> Iterator[Probe]:
    """Open a run's store, and leave it as it was found: also a folder that had to be made is taken away.

    Raises:
        ConfigError, AccessError: as :func:`~unbroken.store.open_store`.
    """
    where = parse_uri(uri)
    made = _missing(Path(where.path)) if where.scheme == "file" else []
    try:
        probe = Probe(open_store(uri, create=True))
        if where.scheme == "file":
            made = [Path(where.path, probe.folder), *_missing(Path(where.path, _PARTIAL))[:1], *made]
        try:
            yield probe
        finally:
            probe.clean()
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not made after all, or something else is in it by now
                folder.rmdir()


def _missing(folder: Path) -> list[Path]:
    """Of a folder and its parents those that are not there, innermost first."""
    with contextlib.suppress(OSError):
        return [path for path in (folder, *folder.parents) if not path.exists()]
    return []
