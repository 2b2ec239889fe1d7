"""Objects that are put at the same time: on a slow line a save costs as many waits as it has stages, not objects."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from operator import length_hint
from typing import NamedTuple

from unbroken.checkpoint.digest import DigestsOnTheWay
from unbroken.store import Store
from unbroken.store.store import Buffer, OnPiece

AT_ONCE = 4
"""Objects under way together. A large one is itself sent in several parts at a time."""


class Upload(NamedTuple):
    """An object to put: its key, its content in parts, and the digests to take of it meanwhile."""

    key: str
    parts: Sequence[Buffer]
    digests: DigestsOnTheWay | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(part) for part in self.parts)


def put_all(store: Store, uploads: Iterable[Upload], *, on_piece: OnPiece | None = None) -> int:
    """Put objects, a few at a time, and return their bytes when all are durable.

    Each is asked for when there is room for it: an iterator may find out meanwhile what comes next. One thread at a
    time asks, and not always the same.

    After a failure no further one is begun; those under way are stopped before their next piece, and then the first
    error is raised.

    Args:
        on_piece: as in :meth:`~unbroken.store.Store.put`, for all objects together: never called twice at the same
            time, but from several threads. What it raises is raised here as it is.
    """
    return _Round(store, uploads, on_piece).run()


class _Stopped(BaseException):
    """Another object of the round has failed."""


class _Round:
    def __init__(self, store: Store, uploads: Iterable[Upload], on_piece: OnPiece | None = None) -> None:
        self._store = store
        self._workers = min(AT_ONCE, length_hint(uploads, AT_ONCE))
        self._uploads = iter(uploads)
        self._on_piece = on_piece
        self._asking, self._telling = threading.Lock(), threading.Lock()
        self._size = 0
        self._errors: list[BaseException] = []

    def run(self) -> int:
        threads: list[threading.Thread] = []
        try:
            for _ in range(self._workers - 1):
                # Not of a pool, whose threads the interpreter waits for at its exit: a save that had to be left behind
                # when the machine is taken must keep no process alive.
                thread = threading.Thread(target=self._work, name="unbroken-put", daemon=True)
                thread.start()
                threads.append(thread)
            self._work()
        finally:
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]
        return self._size

    def _work(self) -> None:
        try:
            while (upload := self._next()) is not None:
                self._put(upload)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for all
            self._errors.append(error)

    def _next(self) -> Upload | None:
        with self._asking:
            if self._errors or (upload := next(self._uploads, None)) is None:
                return None
            self._size += upload.size
            return upload

    def _put(self, upload: Upload) -> None:
        sent = 0

        def announce(size: int) -> None:
            nonlocal sent
            if sent and self._errors:  # what has one piece alone would not end any sooner
                raise _Stopped
            sent += size
            if self._on_piece is not None:
                with self._telling:
                    self._on_piece(size)
            if upload.digests is not None:
                upload.digests.advance(size)

        self._store.put(upload.key, upload.parts, on_piece=announce)
        if upload.digests is not None:
            upload.digests.finish()
