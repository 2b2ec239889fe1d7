"""A Unix socket at which a scheduler of the user's own announces an interruption."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.grace import grace_from
from unbroken.notice.source import Announced, Reach, SourceError, poll_interval
from unbroken.notice.written import parse_written

SOCKET_VARIABLE = "UNBROKEN_NOTICE_SOCKET"
"""Path of the socket."""

_POLL_SECONDS = 0.5
_READ_SECONDS = 1.0
_READ_LIMIT = 8192
_AT_ONCE = 16
_MODE = 0o600


class SocketSource:
    """Listens at ``path``; each connection brings one announcement in the form of :mod:`unbroken.notice.written`.

    The newest one holds until another comes (``none`` cancels). It is answered by ``ok`` or by what is wrong with it,
    and one that cannot be read changes nothing: its sender was told. Only the same user may connect.

    Args:
        path: where to listen; a socket that was left there is replaced, nothing else is.
        poll_seconds: time between looks; None takes ``UNBROKEN_NOTICE_POLL``, else 0.5 s.
        grace: seconds that a stop without a time leaves; None takes ``UNBROKEN_GRACE``, else the default.
        clock: wall clock for deadlines.

    Raises:
        ConfigError: the time between looks, or the grace period, is not usable.
    """

    name = "socket"

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
        self._announced: Announced = []
        self._listener: socket.socket | None = None

    def poll(self) -> Announced:
        """What was announced last.

        Raises:
            SourceError: it cannot listen.
        """
        listener = self._listening()
        for _ in range(_AT_ONCE):
            try:
                connection, _address = listener.accept()
            except BlockingIOError:
                break
            with connection:
                self._hear(connection)
        return self._announced

    def interval(self) -> float:
        return self._seconds

    def reach(self) -> Reach:
        return Reach(self._listener is not None, "" if self._listener else f"it does not listen at {self._path}")

    def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def _listening(self) -> socket.socket:
        if self._listener is None:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                if self._path.exists() and stat.S_ISSOCK(self._path.stat().st_mode):
                    self._path.unlink()
                listener.bind(str(self._path))
                self._path.chmod(_MODE)
                listener.listen(_AT_ONCE)
                listener.setblocking(False)
            except OSError as error:
                listener.close()
                raise SourceError(
                    f"cannot listen for notices at {self._path}: {error}", kind="notice-socket",
                    hint=f"{SOCKET_VARIABLE} names a path of at most 107 bytes in a folder that is there",
                ) from error  # fmt: skip
            self._listener = listener
        return self._listener

    def _hear(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(_READ_SECONDS)
            data = _first_line(connection)
            connection.sendall(self._answer(data))
        except OSError:
            return  # whoever it was has gone, or says nothing; nobody is left to be told

    def _answer(self, data: bytes) -> bytes:
        try:
            written = parse_written(data)
        except ValueError as error:
            return f"{error}: write stop, stop 90, advise or none\n".encode()
        reason = written.reason or f"{written.action} was written to {self._path}"
        self._announced = []
        if written.action == "advise":
            self._announced = [InterruptionAdvisory(self.name, reason)]
        elif written.action == "stop":
            seconds = self._grace if written.seconds is None else written.seconds
            deadline = self._clock.now() + seconds if written.deadline is None else written.deadline
            self._announced = [InterruptionNotice(self.name, reason, deadline)]
        return b"ok\n"


def _first_line(connection: socket.socket) -> bytes:
    """Up to the first end of line, or to the end."""
    data = b""
    while b"\n" not in data and len(data) < _READ_LIMIT:
        piece = connection.recv(_READ_LIMIT)
        if not piece:
            break
        data += piece
    return data.partition(b"\n")[0]
