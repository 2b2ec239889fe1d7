"""The progress page: a few numbers that the loop writes every step and anybody on the machine may read.

The page is a small file mapped into memory. Writing it is one copy of 64 bytes, no system call, and what was written
outlives a SIGKILL of the writer. A page has one writer at a time.

The writer fills two slots in turn; each carries a sequence number and a checksum of the whole slot. A reader takes
the newest slot whose checksum holds, so it never mixes two writes, in whatever order the processor makes the stores
visible, and a writer that dies in the middle of a write leaves the one before it readable.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

_BODY = struct.Struct("<Qqqddqd")
_CHECKSUM = struct.Struct("<Q")
_SLOT = _BODY.size + _CHECKSUM.size
_EMPTY = bytes(_SLOT)
_SLOT_AT = (0, 2048)
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
        newest, _ = self._newest()
        self._sequence = newest[0] if newest else 0

    def write(
        self, step: int, until: int, at: float, next_save_at: float, next_save_step: int, started_at: float
    ) -> None:
        """Replace what the page says; the arguments are the fields of :class:`Progress`."""
        self._sequence = sequence = self._sequence + 1
        body = _BODY.pack(sequence, step, until, at, next_save_at, next_save_step, started_at)
        start = _SLOT_AT[sequence & 1]
        # One slice assignment: pack_into would first fill the slot with zeros, for readers to see.
        self._map[start : start + _SLOT] = body + _CHECKSUM.pack(zlib.crc32(body))

    def read(self) -> Progress | None:
        """What the page says, or None where nothing was written yet."""
        newest = None
        for _ in range(_READ_TRIES):
            newest, settled = self._newest()
            if settled:
                break
        return Progress(*newest[1:]) if newest else None

    def _newest(self) -> tuple[tuple[int, int, int, float, float, int, float] | None, bool]:
        """The newest sound slot's fields, and False where the other one was being written (or left half written)."""
        newest, settled = None, True
        for start in _SLOT_AT:
            slot = self._map[start : start + _SLOT]
            body = slot[: _BODY.size]
            if zlib.crc32(body) == _CHECKSUM.unpack_from(slot, _BODY.size)[0]:
                fields = _BODY.unpack(body)
                newest = fields if newest is None or fields[0] > newest[0] else newest
            elif slot != _EMPTY:
                settled = False
        return newest, settled

    def close(self) -> None:
        """Unmap the page; the file stays."""
        self._map.close()
