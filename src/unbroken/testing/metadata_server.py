"""What the stand-ins for metadata services share: a small HTTP server that also misbehaves on request."""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self, get_args

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import ConfigError

Misbehaviour = Literal["none", "hang", "garbage", "error500", "hop-limit"]

GARBAGE = b'<html>{"action": \xff\xfe'
_LONGEST_HANG = 60.0


@dataclass(frozen=True)
class Request:
    """One request; names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """The reply to one request."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class LocalServer:
    """A server on 127.0.0.1. A context manager; it runs from the constructor to :meth:`close`.

    All methods are safe to call from any thread. A class below says in ``_respond`` what is answered, with
    ``self._lock`` for what it keeps, and calls this constructor last.

    Args:
        port: the port to listen on; 0 takes a free one.
        clock: what tells the moments in the documents.
        tls: speaks https with this.
    """

    def __init__(self, *, port: int = 0, clock: Clock = SYSTEM_CLOCK, tls: ssl.SSLContext | None = None) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._mode: Misbehaviour = "none"
        self._released = threading.Event()
        self._scheme = "https" if tls else "http"
        self._server = _Server(("127.0.0.1", port), self)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake-metadata", daemon=True
        )
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where it listens: ``http://127.0.0.1:PORT``."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> Counter[str]:
        """How often each method and path was asked for, such as ``"PUT /latest/api/token"``."""
        with self._lock:
            return self._requests.copy()

    def misbehave(self, mode: Misbehaviour) -> None:
        """Change how requests are answered from now on.

        ``hang`` accepts and never answers, ``garbage`` gives unreadable documents (and sound tokens), ``error500``
        fails every request, ``hop-limit`` never answers requests for tokens, ``none`` is the sound service again.

        Raises:
            ConfigError: there is no such mode.
        """
        if mode not in get_args(Misbehaviour):
            raise ConfigError(f"{mode!r} is no misbehaviour", kind="mode", hint=f"One of {get_args(Misbehaviour)}")
        with self._lock:
            self._mode = mode
            self._released.set()
            self._released = threading.Event()

    def close(self) -> None:
        """Stop answering and end the server's threads."""
        self.misbehave("none")
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _respond(self, request: Request, *, garbled: bool) -> Answer:
        """The reply to one request of a service that does not hang."""
        raise NotImplementedError

    def _answer(self, request: Request) -> Answer:
        with self._lock:
            self._requests[f"{request.method} {request.path}"] += 1
            mode, released = self._mode, self._released
        if mode == "hang" or (mode == "hop-limit" and request.method == "PUT"):
            released.wait(_LONGEST_HANG)
            return Answer(503)
        if mode == "error500":
            return Answer(500, b"internal error")
        return self._respond(request, garbled=mode == "garbage")


class _Server(ThreadingHTTPServer):
    # Owned threads: server_close() joins them, and a hang ends with the service.
    daemon_threads = False

    def __init__(self, address: tuple[str, int], service: LocalServer) -> None:
        super().__init__(address, _Handler)
        self.service = service

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that break off, as those that do not trust a certificate."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0  # a client that connects and says nothing must not hold close() for longer

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = headers.get("content-length", "0")
        body = self.rfile.read(int(length)) if length.isdecimal() else b""
        answer = self.server.service._answer(Request(self.command, self.path, headers, body))
        try:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
        except ConnectionError:
            self.close_connection = True  # the client gave up first, as it should when we hang

    do_PUT = do_POST = do_GET  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
        """Say nothing: the output belongs to the program under test."""
