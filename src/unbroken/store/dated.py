"""When an object was written, by the clock of the storage, for stores that say so."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Dated(Protocol):
    """A :class:`~unbroken.store.Store` that tells by its own clock when an object was written."""

    def written_at(self, key: str) -> float:
        """Seconds since the Unix epoch; some storages cut them to whole ones.

        Raises:
            NotFoundError: nothing is at ``key``.
        """
