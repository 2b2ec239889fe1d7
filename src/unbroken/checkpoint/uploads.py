"""Objects that are put at the same time: on a slow line a save costs as many waits as it has stages, not objects."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from unbroken.store import Store
from unbroken.store.store import Buffer

AT_ONCE = 4
"""Objects under way together. A large one is itself sent in several parts at a time."""


class Upload(NamedTuple):
    """An object to put: its key, and its content in parts."""

    key: str
    parts: Sequence[Buffer]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(part) for part in self.parts)


def put_all(store: Store, uploads: Sequence[Upload]) -> None:
    """Put objects, a few at a time, and return when all are durable.

    After a failure no further one is begun; those under way are waited for, and then the first error is raised.
    """
    _Round(store, uploads).run()


class _Round:
    def __init__(self, store: Store, uploads: Sequence[Upload]) -> None:
        self._store = store
        self._left = deque(uploads)
        self._errors: list[BaseException] = []

    def run(self) -> None:
        threads: list[threading.Thread] = []
        try:
            for _ in range(min(AT_ONCE, len(self._left)) - 1):
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

    def _work(self) -> None:
        while self._left and not self._errors:
            try:
                upload = self._left.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                self._store.put(upload.key, upload.parts)
            except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for all
                self._errors.append(error)
