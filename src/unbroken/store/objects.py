"""Stores in buckets of every cloud, over obstore (the Rust ``object_store`` crate)."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from unbroken.errors import AccessError, NotFoundError, StoreError, UnbrokenError
from unbroken.store.store import PIECE, Buffer, ObjectInfo, OnPiece, Pieces, check_key, truncated

_CONCURRENCY = 8
_WHOLE_PUT_LIMIT = 8 << 20
_SHORT_PUT_LIMIT = 1 << 20
"""What is smaller is sent within moments on any line, so that it may be given up and tried again soon."""

_DELETERS = 8

_FULL = ("quotaexceeded", "storagefull", "507 insufficient storage")
_CREDENTIALS = (
    "no credentials",
    "credential provider",
    "instance metadata",
    "169.254.169.254",
    "metadata.google",
)
_DENIED = (
    "accessdenied",
    "403 forbidden",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "expiredtoken",
    "invalidtoken",
)
_BEYOND_THE_END = ("invalidrange", "416 range not satisfiable", "416 requested range", "wanted range starting")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")


class ObjectStore:
    """A :class:`~unbroken.store.Store` over one obstore store whose prefix is the run's.

    Args:
        backend: an ``obstore`` store object.
        uri: what :attr:`uri` returns.
        uploads: the same place with more patience, for requests that send much; None for ``backend`` itself.
    """

    def __init__(self, backend: Any, uri: str, *, uploads: Any = None) -> None:
        self._backend = backend
        self._uploads = backend if uploads is None else uploads
        self._uri = uri
        self._lock = threading.Lock()
        self._under_way = 0

    @property
    def uri(self) -> str:
        return self._uri

    def create(self, key: str, data: bytes) -> bool:
        with self._translated("put", key):
            try:
                obstore.put(self._backend, key, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
        pieces = Pieces(parts, on_piece)
        size = pieces.size
        with self._translated("put", key, pieces):
            if size <= _WHOLE_PUT_LIMIT:
                backend = self._backend if size <= _SHORT_PUT_LIMIT else self._uploads
                obstore.put(backend, key, pieces.joined(), use_multipart=False)
            else:  # an iterator of pieces, unlike a buffer, is sent without a zeroed copy between
                with self._share() as concurrency:
                    obstore.put(self._uploads, key, iter(pieces), chunk_size=PIECE, max_concurrency=concurrency)

    @contextmanager
    def _share(self) -> Iterator[int]:
        """How many parts of a large object to send at a time: fewer where others are under way, so that each part still
        gets through in time on a slow line. With less than 4 each, a save waits for its last pack."""
        with self._lock:
            self._under_way += 1
            share = _CONCURRENCY if self._under_way == 1 else _CONCURRENCY // 2
        try:
            yield share
        finally:
            with self._lock:
                self._under_way -= 1

    def get(self, key: str) -> bytes:
        with self._translated("get", key):
            return bytes(obstore.get(self._backend, key).bytes())

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        if length == 0:
            return memoryview(b"")
        with self._translated("get", key):
            try:
                data = memoryview(obstore.get_range(self._backend, key, start=start, length=length))
            except BaseError as error:
                if not any(mark in str(error).lower() for mark in _BEYOND_THE_END):
                    raise
                data = memoryview(b"")
        if len(data) != length:  # object_store gives the bytes there are, and no error, when a range runs over the end
            raise truncated(key, self._uri, start, length)
        return data

    def written_at(self, key: str) -> float:
        """As :class:`~unbroken.store.dated.Dated` says."""
        with self._translated("get", key):
            return obstore.head(self._backend, key)["last_modified"].timestamp()

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        with self._translated("list", prefix):
            found = [
                ObjectInfo(meta["path"], meta["size"])
                for page in obstore.list(self._backend, prefix or None, offset=after or None)
                for meta in page
            ]
        yield from sorted(found, key=lambda info: info.key)

    def delete(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        with ThreadPoolExecutor(min(_DELETERS, len(keys)), thread_name_prefix="unbroken-delete") as pool:
            for _ in pool.map(self._delete, keys):
                pass

    def _delete(self, key: str) -> None:
        with self._translated("delete", key):
            try:
                obstore.delete(self._backend, key)
            except FileNotFoundError as error:
                if _no_bucket(error):
                    raise

    @contextmanager
    def _translated(self, action: str, key: str, pieces: Pieces | None = None) -> Iterator[None]:
        """Check the key, and turn obstore's errors into ours; what a listener to ``pieces`` raised stays as it is."""
        if key or action != "list":
            check_key(key)
        try:
            yield
        except UnbrokenError:
            raise
        except (BaseError, OSError, ValueError) as error:
            if pieces is not None and error is pieces.raised:
                raise
            failure = self._failed(action, key, error)
            # A refusal may echo the request's security token: the original text must not travel on.
            raise failure from (None if isinstance(failure, AccessError) else error)
        except BaseException as error:  # KeyboardInterrupt and its like go on
            if not _is_panic(error):
                raise
            raise self._panicked(action, key, error) from error

    def _panicked(self, action: str, key: str, panic: BaseException) -> StoreError:
        return StoreError(
            f"{action} of {key or 'everything'} in {self._uri} failed inside obstore: {_reason(str(panic))}",
            kind="unavailable",
            hint="Check the cloud's environment variables (endpoint, region, account)",
        )

    def _failed(self, action: str, key: str, error: Exception) -> UnbrokenError:
        missing = isinstance(error, FileNotFoundError)
        if _no_bucket(error) or (missing and action == "list"):
            return NotFoundError(
                f"the bucket of {self._uri} does not exist", kind="bucket", hint="Create it, or mend the URI"
            )
        if missing and action == "get":
            return NotFoundError(f"there is no {key} in {self._uri}", kind="object")
        text = str(error)
        reason, lowered = _reason(text), text.lower()
        what = f"{action} of {key or 'everything'} in {self._uri} failed"
        if any(mark in lowered for mark in _FULL):
            return StoreError(
                f"{what}: no space is left ({reason})", kind="full", hint="Free space or prune checkpoints"
            )
        if any(mark in lowered for mark in _CREDENTIALS):
            return AccessError(
                f"{what}: no credentials were found ({reason})", kind="credentials",
                hint="Set the cloud's environment variables, log in to a profile, or attach a role",
            )  # fmt: skip
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or any(m in lowered for m in _DENIED):
            return AccessError(
                f"{what}: access was denied ({reason})", kind="denied",
                hint="Check the credentials, and that the role may read, put and list below this prefix",
            )  # fmt: skip
        return StoreError(f"{what}: {reason}", kind="unavailable")


def _is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked. Known by name alone: the class is no Exception, and its module cannot be
    imported."""
    kind = type(error)
    return kind.__name__ == "PanicException" and kind.__module__ == "pyo3_runtime"


def _no_bucket(error: Exception) -> bool:
    text = str(error).lower()
    return any(mark in text for mark in ("nosuchbucket", "containernotfound", "specified bucket does not exist"))


def _reason(text: str) -> str:
    """What a server or obstore said, in one short line: of an XML reply only its code and message."""
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code is not None:
        return f"{code[1]}: {message[1]}" if message else code[1]
    line = text.strip().partition("\n")[0] or "no reason given"
    return line if len(line) <= 300 else line[:297] + "..."
