"""Notes that are journalled when the store answers, and are no reason to wait for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from unbroken.errors import FencedError, UnbrokenError
from unbroken.journal.events import Note

_log = logging.getLogger("unbroken")


class UntoldNotes:
    """Safe from any thread.

    Args:
        append: writes to the journal.
    """

    def __init__(self, append: Callable[[Note], None]) -> None:
        self._append = append
        self._notes: list[Note] = []
        self._lock = threading.Lock()

    def add(self, note: Note) -> None:
        """Keep a note for the next :meth:`tell`."""
        with self._lock:
            self._notes.append(note)

    def tell(self) -> None:
        """Journal what is kept, as far as the store lets us; the rest waits for the next time."""
        with self._lock:
            notes, self._notes = self._notes, []
        while notes:
            try:
                self._append(notes[0])
            except FencedError:
                return  # the loop hears of it from the next save
            except UnbrokenError as error:
                _log.debug("not journalled yet: %s", error)
                break
            notes.pop(0)
        with self._lock:
            self._notes = notes + self._notes
