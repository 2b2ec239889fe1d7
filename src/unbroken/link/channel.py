"""A Unix stream socket that carries messages, one JSON object a line."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import UnbrokenError
from unbroken.link.messages import Message

_LINE_LIMIT = 1 << 20
_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class ChannelError(UnbrokenError):
    """The other end is gone, or did not speak our protocol."""


class Channel:
    """One end of a connection. Sending is safe from any thread; one thread receives.

    Args:
        connection: a connected stream socket; the channel owns it from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._socket = connection
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            ChannelError: the other end is gone.
        """
        line = msgspec.json.encode(message) + b"\n"
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError as error:
            raise ChannelError(f"the other end of the link is gone ({error})", kind="closed") from error

    def messages(self) -> Iterator[Message]:
        """Yield messages as they come; end when the other end closes.

        Raises:
            ChannelError: a line is no message of the protocol, or longer than 1 MiB.
        """
        pending = bytearray()
        while True:
            try:
                data = self._socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            pending += data
            while (end := pending.find(b"\n")) >= 0:
                line = bytes(pending[:end])
                del pending[: end + 1]
                yield _decode(line)
            if len(pending) > _LINE_LIMIT:
                raise ChannelError("a line on the link is longer than 1 MiB", kind="protocol")

    def close(self) -> None:
        """Close the connection; a thread inside :meth:`messages` returns."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _decode(line: bytes) -> Message:
    try:
        return _DECODER.decode(line)
    except msgspec.MsgspecError as error:
        raise ChannelError(f"{line[:80]!r} is no message of the link ({error})", kind="protocol") from error


def listen(path: Path) -> socket.socket:
    """Create the listening socket at ``path``, for this user alone."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    server.bind(str(path))
    path.chmod(0o600)
    server.listen(64)
    return server


def connect(path: Path, *, timeout: float, clock: Clock = SYSTEM_CLOCK) -> Channel:
    """Connect to the agent that listens, or will soon listen, at ``path``.

    Raises:
        ChannelError: nobody answered within ``timeout`` seconds.
    """
    deadline = clock.monotonic() + timeout
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(os.fspath(path))
        except OSError as error:
            connection.close()
            if clock.monotonic() >= deadline:
                raise ChannelError(f"no agent answers at {path} ({error})", kind="unreachable") from error
            clock.sleep(0.02)
        else:
            return Channel(connection)
