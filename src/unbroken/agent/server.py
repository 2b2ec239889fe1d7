"""The agent's end of the link: accepts connections and gives each a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from unbroken.link.channel import Channel, listen


class LinkServer:
    """Listens at ``path`` from the constructor to :meth:`close`.

    Args:
        path: where to listen; what is there from an earlier agent is replaced.
        serve: called in a thread of its own for each connection; the channel is closed when it returns.
        failed: told of any exception that leaves ``serve``.
    """

    def __init__(self, path: Path, serve: Callable[[Channel], None], failed: Callable[[BaseException], None]) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._serve = serve
        self._failed = failed
        self._lock = threading.Lock()
        self._channels: dict[Channel, threading.Thread] = {}
        self._closed = False
        self._socket = listen(path)
        self._acceptor = threading.Thread(target=self._accept, name="unbroken-accept", daemon=True)
        self._acceptor.start()

    def close(self, timeout: float) -> None:
        """Stop listening, close every connection, and wait at most ``timeout`` seconds for each thread."""
        with self._lock:
            self._closed = True
            channels = dict(self._channels)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        for channel in channels:
            channel.close()
        for thread in (self._acceptor, *channels.values()):
            thread.join(timeout)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if not self._closed:
                    self._failed(error)
                return
            channel = Channel(connection)
            thread = threading.Thread(target=self._run, args=(channel,), name="unbroken-link", daemon=True)
            with self._lock:
                if self._closed:
                    channel.close()
                    return
                self._channels[channel] = thread
            thread.start()

    def _run(self, channel: Channel) -> None:
        try:
            self._serve(channel)
        except BaseException as error:  # noqa: BLE001 - handed to the owner
            self._failed(error)
        finally:
            channel.close()
            with self._lock:
                self._channels.pop(channel, None)
