"""How long a server may take: one that is slow is waited for, one that has stalled is not."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from unbroken.errors import StoreError
from unbroken.store import Store, open_store, uri
from unbroken.store.objects import _CONCURRENCY, ObjectStore

MiB = 1 << 20
READ, UPLOAD, RETRIES = 1.0, 60.0, 1
MARGIN = 15.0
"""Seconds that a loaded machine may add."""


@pytest.fixture
def impatient(clean_aws: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Stores that give a request up after READ seconds, and an upload after UPLOAD; tried RETRIES times more."""
    clean_aws.setitem(uri._CLIENT, "read_timeout", timedelta(seconds=READ))
    clean_aws.setitem(uri._UPLOADS, "read_timeout", timedelta(seconds=UPLOAD))
    clean_aws.setitem(uri._RETRY, "max_retries", RETRIES)
    clean_aws.setenv("AWS_ACCESS_KEY_ID", "x")
    clean_aws.setenv("AWS_SECRET_ACCESS_KEY", "x")
    return clean_aws


CALLS: dict[str, Callable[[Store], object]] = {
    "create": lambda store: store.create("a", b"1"),
    "put": lambda store: store.put("a", [b"1"]),
    "get": lambda store: store.get("a"),
    "get-range": lambda store: store.get_range("a", 0, 1),
    "list": lambda store: list(store.list("a")),
    "delete": lambda store: store.delete(["a"]),
}
LARGE: dict[str, Callable[[Store], object]] = {
    "put-whole": lambda store: store.put("a", [bytes(2 * MiB)]),
    "put-parts": lambda store: store.put("a", [bytes(17 * MiB)]),
}


def test_the_time_that_a_request_is_given() -> None:
    patience = uri._UPLOADS["read_timeout"]
    assert uri._CLIENT["read_timeout"] == timedelta(seconds=30)
    assert timedelta(seconds=16 * MiB / 0.5e6) < patience < timedelta(seconds=120)  # type: ignore[operator]
    assert patience < uri._UPLOADS["timeout"]  # type: ignore[operator]


@pytest.mark.parametrize("name", [*CALLS, *LARGE])
def test_a_server_that_accepts_and_never_answers_is_given_up(impatient: pytest.MonkeyPatch, name: str) -> None:
    impatient.setitem(uri._UPLOADS, "read_timeout", timedelta(seconds=READ))
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        impatient.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        store = open_store("s3://bucket/run")
        begin = time.monotonic()
        with pytest.raises(StoreError) as caught:
            (CALLS | LARGE)[name](store)
        assert time.monotonic() - begin < READ * (RETRIES + 1) + MARGIN
    assert caught.value.kind == "unavailable"


@pytest.mark.parametrize("name", LARGE)
def test_an_upload_that_takes_longer_than_a_request_may_is_waited_for(impatient: pytest.MonkeyPatch, name: str) -> None:
    with serving(pause=2 * READ) as endpoint:
        impatient.setenv("AWS_ENDPOINT_URL", endpoint)
        LARGE[name](open_store("s3://bucket/run"))


def test_a_download_that_goes_on_may_take_its_time(impatient: pytest.MonkeyPatch) -> None:
    with serving(pause=READ / 4) as endpoint:
        impatient.setenv("AWS_ENDPOINT_URL", endpoint)
        begin = time.monotonic()
        assert open_store("s3://bucket/run").get("a") == Handler.BODY
        assert time.monotonic() - begin > READ


def test_large_objects_that_are_put_together_share_the_parts_under_way() -> None:
    store = ObjectStore(None, "s3://bucket/run")
    with store._share() as alone, store._share() as second, store._share() as third, store._share() as fourth:
        assert alone == _CONCURRENCY
        assert second == third == fourth >= 4
        assert alone + second + third + fourth <= 20  # of 16 MiB each: 3.7 MB/s bring all through in 90 s
    with store._share() as alone:
        assert alone == _CONCURRENCY


class Handler(http.server.BaseHTTPRequestHandler):
    """As much of S3 as a put and a get need; slow with every body, whichever way it goes."""

    BODY = b"0123456789"
    pause: float

    def do_GET(self) -> None:
        self._head(len(self.BODY))
        for byte in self.BODY:
            threading.Event().wait(self.pause)
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        threading.Event().wait(self.pause)
        self._head(0)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        begin = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
        end = b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
        answer = end if "uploadId" in self.path else begin
        self._head(len(answer))
        self.wfile.write(answer)

    def _head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(*, pause: float) -> Iterator[str]:
    """The endpoint of such a server, which pauses ``pause`` seconds before a put's answer or each byte of a get's."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Slow", (Handler,), {"pause": pause}))
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
