"""A file in which a scheduler of the user's own announces an interruption."""

from __future__ import annotations

import os
from pathlib import Path

from unbroken.clock import SYSTEM_CLOCK, Clock, format_time
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.grace import grace_from
from unbroken.notice.source import Announced, Reach, SourceError, poll_interval
from unbroken.notice.written import Written, parse_written

FILE_VARIABLE = "UNBROKEN_NOTICE_FILE"
"""Path of the file."""

_POLL_SECONDS = 1.0
_READ_LIMIT = 8192


class FileSource:
    """Reads the file at ``path`` again and again; :mod:`unbroken.notice.written` has its form.

    No file, or an empty one, announces nothing, and to remove it cancels. ``seconds`` count from the file's time, and
    where it says no time, the grace period does. What cannot be read is looked at once more, as it may be half written,
    and is then a notice. An announcement whose time had passed before this program began is left over from an earlier
    one: it is said once and left alone.

    Args:
        path: where it is or will be.
        poll_seconds: time between looks; None takes ``UNBROKEN_NOTICE_POLL``, else 1 s.
        grace: seconds that a stop without a time leaves; None takes ``UNBROKEN_GRACE``, else the default.
        clock: wall clock for deadlines.

    Raises:
        ConfigError: the time between looks, or the grace period, is not usable.
    """

    name = "file"

    def __init__(
        self,
        path: Path | str,
        *,
        poll_seconds: float | None = None,
        grace: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._path = Path(path)
        self._seconds = poll_interval(poll_seconds, _POLL_SECONDS)
        self._grace = grace_from() if grace is None else grace
        self._clock = clock
        self._began_at = clock.now()
        self._unreadable = b""
        self._stale_said = False
        self._why = ""
        self._announced: Announced = []

    def poll(self) -> Announced:
        """What the file announces now.

        Raises:
            SourceError: it cannot be opened, or is left over from an earlier start (said once).
        """
        try:
            data, written_at = self._read()
        except FileNotFoundError:
            data, written_at = b"", 0.0
        except OSError as error:
            self._why = f"{self._path} cannot be read: {error.strerror}"
            raise SourceError(self._why, kind="notice-file", hint="Until it can, nothing is heard from it") from error
        self._why = ""
        try:
            written = parse_written(data)
        except ValueError as error:
            self._not_readable(data, written_at, error)
            return self._announced
        self._unreadable = b""
        self._announced = []
        self._take(written, written_at)
        return self._announced

    def interval(self) -> float:
        return self._seconds

    def reach(self) -> Reach:
        return Reach(not self._why, self._why)

    def close(self) -> None:
        """Nothing is held between two looks."""

    def _read(self) -> tuple[bytes, float]:
        """What is there, and when it was written, in wall-clock seconds."""
        opened = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hold us
        try:
            return os.read(opened, _READ_LIMIT), os.fstat(opened).st_mtime
        finally:
            os.close(opened)

    def _take(self, written: Written, written_at: float) -> None:
        reason = written.reason or f"{self._path} says {written.action}"
        if written.action == "advise":
            self._announced = [InterruptionAdvisory(self.name, reason)]
        if written.action != "stop":
            return
        seconds = self._grace if written.seconds is None else written.seconds
        deadline = written_at + seconds if written.deadline is None else written.deadline
        if deadline >= self._began_at:
            self._announced = [InterruptionNotice(self.name, reason, deadline)]
        elif not self._stale_said:
            self._stale_said = True
            raise SourceError(
                f"{self._path} announces an interruption for {format_time(deadline)}, before this program began",
                kind="notice-file", hint="It is taken for one that is over: remove the file after each",
            )  # fmt: skip

    def _not_readable(self, data: bytes, written_at: float, error: ValueError) -> None:
        """The writer may be at it; what stays as it is was meant as something."""
        if data == self._unreadable:
            reason = f"{self._path} cannot be read ({error}); {self._grace:g} s of notice are assumed"
            self._announced = [InterruptionNotice(self.name, reason, written_at + self._grace)]
        self._unreadable = data
