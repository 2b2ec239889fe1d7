"""The progress page: a few numbers that the loop writes every step and anybody on the machine may read.

The page is a small file mapped into memory. Writing it is one ``pack_into``, no system call, and what was written
outlives a SIGKILL of the writer. A page has one writer at a time.

The writer stores a sequence number, the numbers, and the sequence number again, in this order; a reader goes the other way and
takes another turn when the two sequence numbers differ. So it never mixes two writes.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_PAGE = struct.Struct("<QqqddqdQ")
_FIRST = struct.Struct("<Q")
_BODY = struct.Struct("<qqddqd")
_LAST_AT = _FIRST.size + _BODY.size
_SIZE = 4096
_READ_TRIES = 100


@dataclass(frozen=True)
class Progress:
    """What a progress page says. Moments are wall-clock seconds; 0 and -1 mean "not known"."""

    step: int
    """Completed optimizer steps."""
    until: int
    """The step at which the run is finished."""
    at: float
    """When ``step`` was completed."""
    next_save_at: float = 0.0
    """When the next save is due, for a cadence in time."""
    next_save_step: int = -1
    """At which step the next save is due, for a cadence in steps."""
    started_at: float = 0.0
    """When the loop of this attempt began its first step."""


class ProgressPage:
    """A progress page at ``path``; ``create`` makes or clears it, otherwise it must exist."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(_SIZE))
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._sequence: int = _FIRST.unpack_from(self._map)[0]

    def write(
        self, step: int, until: int, at: float, next_save_at: float, next_save_step: int, started_at: float
    ) -> None:
        """Replace what the page says; the arguments are the fields of :class:`Progress`."""
        self._sequence = sequence = self._sequence + 1
        _PAGE.pack_into(
            self._map, 0, sequence, step, until, at, next_save_at, next_save_step, started_at, sequence
        )

    def read(self) -> Progress | None:
        """What the page says, or None where nothing was written yet or the writer died in the middle of a write."""
        for _ in range(_READ_TRIES):
            last = _FIRST.unpack_from(self._map, _LAST_AT)[0]
            body = _BODY.unpack_from(self._map, _FIRST.size)
            first = _FIRST.unpack_from(self._map)[0]
            if first == last:
                return Progress(*body) if first else None
        return None

    def close(self) -> None:
        """Unmap the page; the file stays."""
        self._map.close()
