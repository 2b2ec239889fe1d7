"""A small S3-like server that keeps bytes in memory, so that a benchmark measures its clients and not a database.

It serves what the clients of the benchmarks ask for: buckets, put (``If-None-Match: *`` honoured), copy, multipart
uploads and their list, ranged get, head, list and delete. It checks no signature and keeps nothing. Bodies go from
the socket straight into memory that was touched before; a thread serves each connection, and holds no lock while bytes
move.

    python byte_server.py --capacity 5000000000

prints its port, serves on 127.0.0.1, and ends when its standard input does. With ``--forget`` the newest bytes take the
place of the oldest once the memory is full, and objects that lost bytes are gone: several saves of a large state fit,
of which only the newest is read. With ``--rate`` and ``--latency`` each connection is as slow as one to a far server.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from prefault import prefaulted

_HEAD_LIMIT = 64 << 10
_PAGE_OF_KEYS = 1000
_TIME = "1970-01-01T00:00:00.000Z"
_OWN_MEMORY = 1 << 20
"""Smaller bodies get memory of their own: what is written once and read later must not be forgotten for its size."""
_PACED_BYTES = 256 << 10
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_REASONS = {
    200: "OK", 204: "No Content", 206: "Partial Content", 404: "Not Found", 412: "Precondition Failed",
    416: "Range Not Satisfiable", 501: "Not Implemented",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Bytes of a body, and where they lie on the endless tape that the arena's memory is a window of."""

    memory: memoryview
    begins: int = -1
    """-1 for memory of its own."""


class Arena:
    """Memory whose pages are there before the first upload.

    Args:
        capacity: bytes.
        forget: begin again at the start once it is full; else what does not fit gets memory of its own.
    """

    def __init__(self, capacity: int, *, forget: bool = False) -> None:
        self._view = memoryview(prefaulted(capacity))
        self._forget = forget
        self._end = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> Block:
        """``size`` bytes, writable."""
        room, capacity = -(-size // 4096) * 4096, len(self._view)
        with self._lock:
            begins = self._end
            if begins % capacity + room > capacity:
                begins = -(-begins // capacity) * capacity  # bytes of one body lie together
            if size < _OWN_MEMORY or room > capacity or (begins >= capacity and not self._forget):
                return Block(memoryview(bytearray(size)))
            self._end = begins + room
        start = begins % capacity
        return Block(self._view[start : start + size], begins)

    def holds(self, block: Block) -> bool:
        """Whether these bytes are still what was written there."""
        return block.begins < 0 or block.begins >= self._end - len(self._view)


@dataclass(frozen=True)
class Pace:
    """How fast a connection is: bytes per second in either direction (0: no limit), and seconds before each answer."""

    rate: float = 0.0
    latency: float = 0.0

    def hold(self, began: float, moved: int) -> None:
        """Wait until ``moved`` bytes may have passed since ``began``."""
        if self.rate and (early := began + moved / self.rate - time.monotonic()) > 0:
            time.sleep(early)


@dataclass(frozen=True)
class Object:
    """A stored object: its bytes in one or more pieces."""

    pieces: list[Block]
    etag: str

    @property
    def size(self) -> int:
        return sum(len(piece.memory) for piece in self.pieces)

    def cut(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes from ``start`` up to ``end``."""
        at = 0
        for piece in self.pieces:
            yield piece.memory[max(0, start - at) : max(0, end - at)]
            at += len(piece.memory)


@dataclass(frozen=True)
class Upload:
    """A multipart upload that is not complete."""

    key: str
    parts: dict[int, Block] = field(default_factory=dict)


@dataclass
class Bucket:
    """What the server holds. ``lock`` guards the tables, never the bytes."""

    arena: Arena
    pace: Pace = field(default_factory=Pace)
    objects: dict[str, Object] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Request:
    """A request whose body was read."""

    method: str
    key: str
    """With the bucket's name before it; a bucket itself has no ``/``."""
    query: dict[str, str]
    headers: dict[str, str]
    body: Block

    @property
    def text(self) -> str:
        """The body of a request that carries XML."""
        return bytes(self.body.memory).decode()


@dataclass(frozen=True)
class Reply:
    """A status with a body of some pieces."""

    status: int
    body: list[memoryview] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description="serve S3-like objects from memory on 127.0.0.1")
    parser.add_argument("--capacity", type=int, default=0, help="bytes of memory to make ready before serving")
    parser.add_argument("--forget", action="store_true", help="let new bytes take the place of the oldest")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes per second of each connection")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    options = parser.parse_args()
    bucket = Bucket(Arena(options.capacity, forget=options.forget), Pace(options.rate, options.latency))
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=accept, args=(listener, bucket), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
    os._exit(0)  # connections that are still open must not hold the process


def accept(listener: socket.socket, bucket: Bucket) -> None:
    """Give every connection a thread."""
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection, bucket), daemon=True).start()


def serve(connection: socket.socket, bucket: Bucket) -> None:
    """Answer one connection's requests until the client leaves."""
    received = bytearray()
    with connection:
        try:
            while (request := _read_request(connection, received, bucket)) is not None:
                reply = answer(bucket, request)
                time.sleep(bucket.pace.latency)
                _send(connection, reply, bucket.pace, head_only=request.method == "HEAD")
        except (ConnectionError, ValueError) as error:
            if not isinstance(error, ConnectionError):
                print(f"connection given up: {error}", file=sys.stderr, flush=True)


def _read_request(connection: socket.socket, received: bytearray, bucket: Bucket) -> Request | None:
    while (end := received.find(b"\r\n\r\n")) < 0:
        data = connection.recv(_HEAD_LIMIT)
        if not data:
            return None
        received += data
        if len(received) > _HEAD_LIMIT and b"\r\n\r\n" not in received[:_HEAD_LIMIT]:
            raise ValueError("the request's head does not end")
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    del received[: end + 4]
    method, target, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "chunked" in headers.get("content-encoding", "") + headers.get("transfer-encoding", ""):
        raise ValueError("a body in chunks is not read by this server")
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bucket.arena.take(int(headers.get("content-length", "0")))
    _read_body(connection, received, body.memory, bucket.pace)
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return Request(method, unquote(parts.path).strip("/"), query, headers, body)


def _read_body(connection: socket.socket, received: bytearray, body: memoryview, pace: Pace) -> None:
    already = min(len(received), len(body))
    body[:already] = received[:already]
    del received[:already]
    began = time.monotonic()
    # All in one call: this thread asks for the interpreter's lock once for a body, not once for each packet.
    most = _PACED_BYTES if pace.rate else len(body)
    while already < len(body):
        count = connection.recv_into(body[already : already + most], 0, socket.MSG_WAITALL)
        if not count:
            raise ConnectionResetError("the client left in the middle of a body")
        already += count
        pace.hold(began, already)


def _send(connection: socket.socket, reply: Reply, pace: Pace, *, head_only: bool) -> None:
    headers = {"Content-Length": str(sum(len(piece) for piece in reply.body)), **reply.headers}
    lines = [f"HTTP/1.1 {reply.status} {_REASONS[reply.status]}", *(f"{name}: {headers[name]}" for name in headers)]
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    if head_only:
        return
    began, sent = time.monotonic(), 0
    for piece in reply.body:
        most = _PACED_BYTES if pace.rate else max(1, len(piece))
        for at in range(0, len(piece), most):
            connection.sendall(piece[at : at + most])
            sent += min(most, len(piece) - at)
            pace.hold(began, sent)


def answer(bucket: Bucket, request: Request) -> Reply:
    """Do what a request asks for."""
    if "/" not in request.key:
        if request.method == "GET":
            return _list_uploads(bucket) if "uploads" in request.query else _list(bucket, request)
        return _delete_several(bucket, request) if "delete" in request.query else Reply(200)
    match request.method:
        case "GET" | "HEAD":
            return _get(bucket, request)
        case "PUT":
            return _put_part(bucket, request) if "uploadId" in request.query else _put(bucket, request)
        case "POST":
            return _complete(bucket, request) if "uploadId" in request.query else _begin(bucket, request)
        case "DELETE":
            with bucket.lock:
                bucket.uploads.pop(request.query.get("uploadId", ""), None)
                if "uploadId" not in request.query:
                    bucket.objects.pop(request.key, None)
            return Reply(204)
    return Reply(501)


def _put(bucket: Bucket, request: Request) -> Reply:
    source = request.headers.get("x-amz-copy-source")
    if source is not None:
        return _copy(bucket, request, unquote(source).strip("/"))
    new = Object([request.body], _etag())
    with bucket.lock:
        if request.headers.get("if-none-match") == "*" and request.key in bucket.objects:
            return _error(412, "PreconditionFailed")
        bucket.objects[request.key] = new
    return Reply(200, headers={"ETag": new.etag})


def _copy(bucket: Bucket, request: Request, source: str) -> Reply:
    with bucket.lock:
        found = bucket.objects.get(source)
        if found is None:
            return _error(404, "NoSuchKey")
        bucket.objects[request.key] = found
    return _xml("CopyObjectResult", f"<ETag>{escape(found.etag)}</ETag><LastModified>{_TIME}</LastModified>")


def _begin(bucket: Bucket, request: Request) -> Reply:
    upload = secrets.token_hex(8)
    with bucket.lock:
        bucket.uploads[upload] = Upload(request.key)
    name, _, key = request.key.partition("/")
    ids = f"<Bucket>{escape(name)}</Bucket><Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"
    return _xml("InitiateMultipartUploadResult", ids)


def _put_part(bucket: Bucket, request: Request) -> Reply:
    with bucket.lock:
        upload = bucket.uploads.get(request.query["uploadId"])
        if upload is None:
            return _error(404, "NoSuchUpload")
        upload.parts[int(request.query["partNumber"])] = request.body
    return Reply(200, headers={"ETag": _etag()})


def _complete(bucket: Bucket, request: Request) -> Reply:
    named = [int(number) for number in re.findall(r"<PartNumber>(\d+)</PartNumber>", request.text)]
    with bucket.lock:
        upload = bucket.uploads.pop(request.query["uploadId"], None)
        if upload is None or sorted(upload.parts) != named:
            return _error(404, "NoSuchUpload" if upload is None else "InvalidPart")
        new = bucket.objects[request.key] = Object([upload.parts[number] for number in named], _etag())
    name, _, key = request.key.partition("/")
    return _xml(
        "CompleteMultipartUploadResult",
        f"<Bucket>{escape(name)}</Bucket><Key>{escape(key)}</Key><ETag>{escape(new.etag)}</ETag>",
    )


def _get(bucket: Bucket, request: Request) -> Reply:
    found = bucket.objects.get(request.key)
    if found is None or not all(bucket.arena.holds(piece) for piece in found.pieces):
        return _error(404, "NoSuchKey")
    headers = {
        "ETag": found.etag, "Accept-Ranges": "bytes", "Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT",
        "Content-Type": "application/octet-stream",
    }  # fmt: skip
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if wanted is None:
        return Reply(200, [piece.memory for piece in found.pieces], headers)
    start, end = int(wanted[1]), min(int(wanted[2] or found.size), found.size - 1) + 1
    if start >= found.size:
        return _error(416, "InvalidRange")
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size}"
    return Reply(206, [piece for piece in found.cut(start, end) if len(piece)], headers)


def _list(bucket: Bucket, request: Request) -> Reply:
    name, query = request.key, request.query
    after = max(query.get("start-after", ""), query.get("continuation-token", ""))
    with bucket.lock:
        everything = {key.removeprefix(f"{name}/"): found for key, found in bucket.objects.items()}
    keys = sorted(key for key in everything if key.startswith(query.get("prefix", "")) and key > after)
    page, more = keys[:_PAGE_OF_KEYS], len(keys) > _PAGE_OF_KEYS
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>{_TIME}</LastModified>"
        f"<ETag>{escape(everything[key].etag)}</ETag><Size>{everything[key].size}</Size></Contents>"
        for key in page
    )
    token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
    return _xml(
        "ListBucketResult",
        f"<Name>{escape(name)}</Name><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
        f"{token}{entries}",
    )


def _list_uploads(bucket: Bucket) -> Reply:
    with bucket.lock:
        open_ones = {upload: about.key.partition("/")[2] for upload, about in bucket.uploads.items()}
    entries = "".join(
        f"<Upload><Key>{escape(key)}</Key><UploadId>{upload}</UploadId></Upload>" for upload, key in open_ones.items()
    )
    return _xml("ListMultipartUploadsResult", f"<IsTruncated>false</IsTruncated>{entries}")


def _delete_several(bucket: Bucket, request: Request) -> Reply:
    named = re.findall(r"<Key>([^<]*)</Key>", request.text)
    with bucket.lock:
        for key in named:
            bucket.objects.pop(f"{request.key}/{unescape(key)}", None)
    return _xml("DeleteResult", "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in named))


def _etag() -> str:
    return f'"{secrets.token_hex(16)}"'


def _xml(name: str, content: str, status: int = 200) -> Reply:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>{content}</{name}>'
    return Reply(status, [memoryview(text.encode())], {"Content-Type": "application/xml"})


def _error(status: int, code: str) -> Reply:
    return _xml("Error", f"<Code>{code}</Code><Message>{code}</Message>", status)


if __name__ == "__main__":
    main()
