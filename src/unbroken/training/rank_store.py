"""A small store that the ranks of one attempt share, to say a few things to each other without collectives."""

from __future__ import annotations

import atexit
import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
import torch.distributed as dist
from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_store

from unbroken.errors import StoreError
from unbroken.training.rank_address import own_address
from unbroken.training.rank_connection import LOST_HINT, Connection

T = TypeVar("T")

_PART = 4 << 20  # torch's server resets the connection of who sends 8 MiB at once
_KEYS_AT_ONCE = 4096
_SLACK = 5.0  # seconds that a wait with a deadline of its own is given above it, before the connection is abandoned
_REQUEST_SECONDS = 60.0
_WHOLE, _PARTS, _FAILED = b"w", b"p", b"f"

_opened = itertools.count()  # each rank opens its stores in the same order, so that the number is the same on all


class RankStore:
    """Keys and bytes, hosted by rank 0, reached by all; safe to use from any thread.

    Every request has a deadline. A request that waits does not hold up another: each takes a connection that is idle,
    or a new one. A key is written once; nothing is deleted before the store is closed, unless by :meth:`delete`.
    Like torch's own stores it listens on all addresses and asks nobody for a password.

    Args:
        host, port: where the store is.
        rank, world_size: which of how many this is.
        server: what rank 0 hosts; None on the others.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int, server: TCPStore | None = None) -> None:
        self.host, self.port, self.rank, self.world_size = host, port, rank, world_size
        self._server = server
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, rank: int, world_size: int, *, seconds: float = 300.0) -> RankStore:
        """Rank 0 hosts a store on a free port and tells the others where, through the default process group's store.

        Every rank calls it, equally often and in the same order. ``torch.distributed`` must be initialised.

        Raises:
            StoreError: kind ``"ranks"``: rank 0 did not say where the store is, or it could not be reached, within
                ``seconds``.
        """
        key = f"unbroken/{next(_opened)}"
        default = _get_default_store()
        # A wait holds the client that waits, and torch's own threads use that of the process group.
        shared = default.clone() if hasattr(default, "clone") else default
        if rank == 0:
            store = cls.serve(world_size, own_address(default))
            shared.set(key, msgspec.json.encode((store.host, store.port)).decode())
            return store
        try:
            shared.wait([key], timedelta(seconds=seconds))
            host, port = msgspec.json.decode(shared.get(key), type=tuple[str, int])
        except dist.DistError as error:
            message = f"rank {rank} waited {seconds:g} s for rank 0 to say where the ranks' store is"
            raise StoreError(message, kind="ranks", hint="Does every rank open the run?") from error
        return cls.join(host, port, rank, world_size, seconds=seconds)

    @classmethod
    def serve(cls, world_size: int, host: str = "127.0.0.1") -> RankStore:
        """Rank 0's store, on a free port of all addresses of this machine.

        Args:
            host: by which name or address the others reach this machine.

        Raises:
            StoreError: kind ``"ranks"``: there is no port for it.
        """
        try:
            server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        except (dist.DistError, OSError) as error:
            raise StoreError(f"rank 0 cannot host the ranks' store: {error}", kind="ranks") from error
        # Rank 0's own requests go over the loopback: its outer address may not lead back to it.
        store = cls("127.0.0.1", server.port, 0, world_size, server)
        store.host = host.strip("[]")
        atexit.register(_outlive_the_interpreter, weakref.ref(store))
        return store

    @classmethod
    def join(cls, host: str, port: int, rank: int, world_size: int, *, seconds: float = 300.0) -> RankStore:
        """Another rank's store, connected.

        Raises:
            StoreError: kind ``"ranks"``: nobody answers there within ``seconds``.
        """
        store = cls(host, port, rank, world_size)
        store._idle.append(Connection(host, port, seconds=seconds))
        return store

    def connect(self, *, seconds: float = _REQUEST_SECONDS) -> Connection:
        """A connection of the caller's own, for long waits; the caller closes it."""
        return Connection("127.0.0.1" if self._server else self.host, self.port, seconds=seconds)

    def set(self, key: str, value: bytes, seconds: float = _REQUEST_SECONDS) -> None:
        """Write ``value``, of any length, to be read by :meth:`get`.

        Raises:
            StoreError: kind ``"ranks"``.
        """

        def write(store: TCPStore) -> None:
            if len(value) <= _PART:
                store.set(key, _WHOLE + value)  # type: ignore[arg-type]  # torch takes bytes, its stubs say str
            else:
                parts = range(0, len(value), _PART)
                for number, start in enumerate(parts):
                    store.set(f"{key}/part{number}", value[start : start + _PART])  # type: ignore[arg-type]
                store.set(key, _PARTS + b"%d" % len(parts))  # type: ignore[arg-type]
            store.check([key])  # an answer, unlike a set, says that the server has it

        self.request(write, seconds, f"setting {key!r}")

    def get(self, key: str, seconds: float) -> bytes:
        """What :meth:`set` wrote; waits up to ``seconds`` for it.

        Raises:
            StoreError: kind ``"ranks"``: nobody wrote it in time.
        """

        def read(store: TCPStore) -> bytes | None:
            if not _present(store, [key], seconds):
                return None
            return _unwrapped(store, key, store.get(key))

        value = self.request(read, seconds + _SLACK, f"reading {key!r}")
        if value is None:
            raise StoreError(f"rank {self.rank} waited {seconds:g} s for {key!r}: nobody gave it", kind="ranks")
        return value

    def gather(self, key: str, value: bytes, seconds: float) -> list[bytes]:
        """Every rank gives a value and gets those of all, by rank.

        Rank 0 collects them in a few requests and publishes them as one value. Each ``key`` is used once.

        Raises:
            StoreError: kind ``"ranks"``, on all ranks: not every rank gave its value in time. It names who is missing.
        """
        self.set(f"{key}/{self.rank}", value, seconds)
        if self.rank == 0:
            self._publish(key, seconds)
        # Rank 0 may have come last and have waited as long from then.
        return self._published(key, "a value of all ranks", seconds * 2)

    def share(self, key: str, value: bytes | None, seconds: float) -> bytes:
        """What rank 0 gives, on all ranks; the others give None. Each ``key`` is used once.

        Raises:
            StoreError: kind ``"ranks"``: rank 0 did not give it in time.
        """
        if self.rank == 0:
            if value is None:
                raise TypeError(f"rank 0 must give the value that it shares as {key!r}")
            self.set(key, value, seconds)
            return value
        try:
            return self.get(key, seconds)
        except StoreError as error:
            raise StoreError(f"rank {self.rank} waited {seconds:g} s for rank 0 to share {key!r}: {error.message}",
                             kind="ranks", hint=error.hint) from error  # fmt: skip

    def count(self, key: str, more: int, seconds: float = _REQUEST_SECONDS) -> int:
        """Add ``more`` to a counter and return it."""
        return self.request(lambda store: int(store.add(key, more)), seconds, f"counting {key!r}")

    def claim(self, key: str, value: bytes, seconds: float = _REQUEST_SECONDS) -> bytes:
        """Write ``value`` where nothing is, as it is; return what is there then."""
        return self.request(
            lambda store: bytes(store.compare_set(key, "", value)),  # type: ignore[arg-type]
            seconds,
            f"claiming {key!r}",
        )

    def put_many(self, keys: Sequence[str], values: Sequence[bytes], seconds: float = _REQUEST_SECONDS) -> None:
        """Write small values as they are, in few requests."""

        def write(store: TCPStore) -> None:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                piece = slice(start, start + _KEYS_AT_ONCE)
                store.multi_set(list(keys[piece]), list(values[piece]))  # type: ignore[attr-defined]  # missing in the stubs

        self.request(write, seconds, f"setting {keys[0]!r} and others")

    def look(self, keys: Sequence[str], seconds: float = _REQUEST_SECONDS) -> list[bytes] | None:
        """The values as they are, in few requests, or None where one of them is not there; does not wait."""

        def read(store: TCPStore) -> list[bytes] | None:
            if not store.check(list(keys)):
                return None
            return _many(store, keys)

        return self.request(read, seconds, f"reading {keys[0]!r}")

    def request(self, work: Callable[[TCPStore], T], seconds: float, what: str) -> T:
        """Do ``work`` on a connection that is idle, within ``seconds``.

        Raises:
            StoreError: kind ``"ranks"``: no answer in time, the connection broke, or the store is closed.
        """
        connection = self._take(seconds)
        try:
            return connection.call(work, seconds, what)
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close the connections; on rank 0 the store is gone then. Waits at most a second for each connection."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        for connection in idle:
            connection.join(1.0)
        self._server = None

    def _publish(self, key: str, seconds: float) -> None:
        keys = [f"{key}/{rank}" for rank in range(self.world_size)]

        def collect(store: TCPStore) -> list[bytes] | list[int]:
            if not _present(store, keys, seconds):
                missing = [rank for rank, each in enumerate(keys) if not store.check([each])]
                if missing:
                    return missing
            return [_unwrapped(store, *pair) for pair in zip(keys, _many(store, keys), strict=True)]

        got: list[Any] = self.request(collect, seconds + _SLACK, f"gathering {key!r}")
        if got and isinstance(got[0], int):
            reply = _FAILED + f"{_ranks(got)} gave nothing for {key!r} within {seconds:g} s".encode()
        else:
            reply = _WHOLE + msgspec.msgpack.encode(got)
        self.set(f"{key}/all", reply, seconds)

    def _published(self, key: str, what: str, seconds: float) -> list[bytes]:
        try:
            reply = self.get(f"{key}/all", seconds)
        except StoreError as error:
            message = f"rank {self.rank} waited {seconds:g} s for {what} under {key!r}, which rank 0 collects"
            raise StoreError(f"{message}: {error.message}", kind="ranks", hint=error.hint) from error
        if reply[:1] == _FAILED:
            raise StoreError(reply[1:].decode(), kind="ranks", hint=LOST_HINT)
        return msgspec.msgpack.decode(reply[1:], type=list[bytes])

    def _take(self, seconds: float) -> Connection:
        with self._lock:
            if self._closed:
                raise StoreError("the ranks' store is closed", kind="ranks")
            if self._idle:
                return self._idle.pop()
        return self.connect(seconds=seconds)

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if connection.usable and not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def _outlive_the_interpreter(store: weakref.ref[RankStore]) -> None:
    """Leave a server that nobody closed to the end of the process.

    Were it destroyed with the interpreter's last objects, threads that wait in C++ would come back with an error into
    an interpreter that is gone, and the process would abort: an exit code that nobody gave.
    """
    open_store = store()
    if open_store is not None and open_store._server is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(open_store._server))


def _present(store: TCPStore, keys: Sequence[str], seconds: float) -> bool:
    """Wait for all of ``keys``; False where they did not come."""
    try:
        store.wait(list(keys), timedelta(seconds=seconds))
    except DistStoreError:
        return False
    return True


def _many(store: TCPStore, keys: Sequence[str]) -> list[bytes]:
    pieces = (keys[start : start + _KEYS_AT_ONCE] for start in range(0, len(keys), _KEYS_AT_ONCE))
    return [bytes(value) for piece in pieces for value in store.multi_get(list(piece))]


def _unwrapped(store: TCPStore, key: str, value: bytes) -> bytes:
    if value[:1] == _WHOLE:
        return value[1:]
    return b"".join(_many(store, [f"{key}/part{number}" for number in range(int(value[1:]))]))


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}"
