"""A local stand-in for the EC2 instance metadata service, version 2, as far as interruptions need it."""

from __future__ import annotations

import json
import secrets
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self, get_args

from unbroken.clock import SYSTEM_CLOCK, Clock, format_time
from unbroken.errors import ConfigError

Action = Literal["terminate", "stop", "hibernate"]
Misbehaviour = Literal["none", "hang", "garbage", "error500"]

_TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path, not a secret
_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105
_MAX_TTL = 21600
_ACTION_PATH = "/latest/meta-data/spot/instance-action"
_REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
_INSTANCE_PATH = "/latest/meta-data/instance-id"
_GARBAGE = b'<html>{"action": \xff\xfe'
_LONGEST_HANG = 60.0


class EC2MetadataService:
    """A server on 127.0.0.1 that answers as IMDSv2 does where tokens are required.

    Set ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` to :attr:`endpoint` in the environment of the process under
    test. A context manager; the server runs from the constructor to :meth:`close`. All methods are safe to
    call from any thread.

    Args:
        port: the port to listen on; 0 takes a free one.
        clock: what tells token ages and the moments in the documents.
    """

    def __init__(self, *, port: int = 0, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._tokens: dict[str, float] = {}
        self._documents: dict[str, bytes] = {}
        self._mode: Misbehaviour = "none"
        self._released = threading.Event()
        self._become_instance()
        self._server = _Server(("127.0.0.1", port), self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake-imds", daemon=True
        )
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where it listens: ``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> Counter[str]:
        """How often each method and path was asked for, such as ``"PUT /latest/api/token"``."""
        with self._lock:
            return self._requests.copy()

    @property
    def instance_id(self) -> str:
        with self._lock:
            return self._documents[_INSTANCE_PATH].decode()

    def interrupt(self, action: Action = "terminate", seconds: float = 120.0) -> float:
        """Announce that this instance is taken in ``seconds``.

        Returns:
            The announced moment, in wall-clock seconds; it has whole seconds, as EC2's, and never moves.

        Raises:
            ConfigError: EC2 knows no such action.
        """
        if action not in get_args(Action):
            raise ConfigError(
                f"{action!r} is no spot instance action", kind="action", hint=f"One of {get_args(Action)}"
            )
        deadline = float(int(self._clock.now() + seconds))
        document = {"action": action, "time": _whole_seconds(deadline)}
        with self._lock:
            self._documents[_ACTION_PATH] = json.dumps(document).encode()
        return deadline

    def recommend_rebalance(self) -> None:
        """Announce that this instance is at elevated risk."""
        document = {"noticeTime": _whole_seconds(self._clock.now())}
        with self._lock:
            self._documents[_REBALANCE_PATH] = json.dumps(document).encode()

    def clear(self) -> None:
        """Become a new instance: another id, nothing announced, no token valid."""
        with self._lock:
            self._tokens.clear()
            self._become_instance()

    def expire_tokens(self) -> None:
        """Let every token given out so far be refused with 401."""
        with self._lock:
            self._tokens.clear()

    def misbehave(self, mode: Misbehaviour) -> None:
        """Change how requests are answered from now on.

        ``hang`` accepts and never answers, ``garbage`` gives sound tokens and unreadable documents, ``error500``
        fails every request, ``none`` is the sound service again.

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

    def _become_instance(self) -> None:
        self._documents = {_INSTANCE_PATH: f"i-{secrets.token_hex(9)[:17]}".encode()}

    def _answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """The status and body of the reply to one request."""
        with self._lock:
            self._requests[f"{method} {path}"] += 1
            mode, released = self._mode, self._released
        if mode == "hang":
            released.wait(_LONGEST_HANG)
            return 503, b""
        if mode == "error500":
            return 500, b"internal error"
        if method == "PUT":
            return self._give_token(headers) if path == _TOKEN_PATH else (405, b"")
        return self._give_document(path, headers, garbled=mode == "garbage")

    def _give_token(self, headers: dict[str, str]) -> tuple[int, bytes]:
        if "x-forwarded-for" in headers:
            return 403, b""  # IMDSv2 refuses tokens to anything that came through a proxy
        lifetime = headers.get(_TTL_HEADER.lower(), "")
        if not lifetime.isdecimal() or not 1 <= int(lifetime) <= _MAX_TTL:
            return 400, b""
        token = secrets.token_urlsafe(40)
        with self._lock:
            self._tokens[token] = self._clock.monotonic() + int(lifetime)
        return 200, token.encode()

    def _give_document(self, path: str, headers: dict[str, str], *, garbled: bool) -> tuple[int, bytes]:
        with self._lock:
            expires_at = self._tokens.get(headers.get(_TOKEN_HEADER.lower(), ""))
            document = self._documents.get(path)
        if expires_at is None or self._clock.monotonic() >= expires_at:
            return 401, b""
        if garbled:
            return 200, _GARBAGE
        return (404, b"") if document is None else (200, document)


class _Server(ThreadingHTTPServer):
    # Owned threads: server_close() joins them, and a hang ends with the service.
    daemon_threads = False

    def __init__(self, address: tuple[str, int], service: EC2MetadataService) -> None:
        super().__init__(address, _Handler)
        self.service = service


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0  # a client that connects and says nothing must not hold close() for longer

    def do_GET(self) -> None:
        self._reply()

    def do_PUT(self) -> None:
        self._reply()

    def _reply(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, body = self.server.service._answer(self.command, self.path, headers)
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True  # the client gave up first, as it should when we hang

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
        """Say nothing: the output belongs to the program under test."""


def _whole_seconds(at: float) -> str:
    return format_time(int(at)).replace(".000Z", "Z")
