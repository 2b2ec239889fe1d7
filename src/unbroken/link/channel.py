"""A Unix stream socket that carries messages, one JSON object a line, and descriptors beside them."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import UnbrokenError
from unbroken.link.messages import Message

_LINE_LIMIT = 1 << 20
_DESCRIPTORS_AT_ONCE = 8
_ANCILLARY = socket.CMSG_SPACE(_DESCRIPTORS_AT_ONCE * array.array("i").itemsize)
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
        self._received: deque[int] = deque()
        """Descriptors that came and that nobody has taken yet."""
        self._closed = False

    def send(self, message: Message, descriptor: int | None = None) -> None:
        """Send one message, and a copy of a descriptor with it.

        Raises:
            ChannelError: the other end is gone.
        """
        line = msgspec.json.encode(message) + b"\n"
        try:
            with self._sending:
                if descriptor is not None:
                    line = line[socket.send_fds(self._socket, [line], [descriptor]) :]
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
                data = self._receive()
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

    def take_descriptor(self) -> int:
        """The descriptor that came with the message that :meth:`messages` yielded last; the caller owns it.

        Raises:
            ChannelError: none came.
        """
        try:
            return self._received.popleft()
        except IndexError:
            raise ChannelError("a message came without its descriptor", kind="protocol") from None

    def close(self) -> None:
        """Close the connection; a thread inside :meth:`messages` returns."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._closed = True
        self._drop_descriptors()

    def _receive(self) -> bytes:
        data, ancillary, flags, _ = self._socket.recvmsg(65536, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
                self._received.extend(descriptors)
        if self._closed:
            self._drop_descriptors()
        if flags & socket.MSG_CTRUNC:
            raise ChannelError("a descriptor was lost on the link: this process has too many open", kind="descriptors")
        return data

    def _drop_descriptors(self) -> None:
        while self._received:
            with contextlib.suppress(IndexError):  # taken by another thread just now
                os.close(self._received.popleft())


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
