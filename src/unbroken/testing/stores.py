"""Stores that fail on purpose, and damage to stored objects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from unbroken.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from unbroken.store import ObjectInfo, Store
    from unbroken.store.store import Buffer, OnPiece

Method = Literal["create", "put", "get", "get_range", "list", "delete"]
Moment = Literal["before", "after", "retried"]

_Result = TypeVar("_Result")


class Crash(BaseException):
    """The process died at this store call. ``except Exception`` cannot stop it, as it cannot stop a SIGKILL."""


@dataclass(frozen=True)
class Call:
    """One call that reached a :class:`FaultyStore`."""

    number: int
    """Counted from 1 since the store was made or armed."""
    method: Method
    key: str
    """The object's key; for a listing, its prefix."""


class FaultyStore:
    """A :class:`~unbroken.store.Store` that passes calls on to ``store`` and fails one of them.

    A delete of several keys counts as one call for each key, so that it can fail between them. Sweeping
    ``fail_call`` over 1, 2, 3, ... until a pass sees fewer calls visits every point at which a save can fail.

    Args:
        store: the store that does the work.
        fail_call: which call fails, counted from 1; None for none.
        moment: the call fails ``before`` it took effect, or ``after`` (its reply is lost); ``retried`` loses
            the reply to a store that then tries again by itself: a ``create`` returns False although it
            created, and other calls succeed.
        crash: raise :class:`Crash` instead of :class:`~unbroken.errors.StoreError`; every later call raises
            it as well.
        methods: count calls of these methods alone; None for all.
    """

    def __init__(
        self,
        store: Store,
        *,
        fail_call: int | None = None,
        moment: Moment = "before",
        crash: bool = False,
        methods: Collection[Method] | None = None,
    ) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.arm(fail_call, moment=moment, crash=crash, methods=methods)

    def arm(
        self,
        fail_call: int | None,
        *,
        moment: Moment = "before",
        crash: bool = False,
        methods: Collection[Method] | None = None,
    ) -> None:
        """Forget the calls so far, and a crash; fail as told from here on, by the constructor's arguments.

        Raises:
            ConfigError: no call can be number ``fail_call``, or there is no such moment.
        """
        if fail_call is not None and fail_call < 1:
            raise ConfigError(f"fail_call is {fail_call}", kind="fault", hint="Calls are counted from 1")
        if moment not in get_args(Moment):
            raise ConfigError(f"{moment!r} is no moment", kind="fault", hint=f"One of {get_args(Moment)}")
        if crash and moment == "retried":
            raise ConfigError("a process that crashed does not try again", kind="fault", hint="Use before or after")
        with self._lock:
            self._fail_call, self._moment, self._crash, self._methods = fail_call, moment, crash, methods
            self._calls: list[Call] = []
            self._crashed = False

    @property
    def calls(self) -> list[Call]:
        """The counted calls so far, in their order, with the one that failed."""
        with self._lock:
            return list(self._calls)

    @property
    def crashed(self) -> bool:
        """Whether the process under test is dead by now."""
        with self._lock:
            return self._crashed

    @property
    def uri(self) -> str:
        return self._store.uri

    def create(self, key: str, data: bytes) -> bool:
        failing = self._begin("create", key)
        created = self._pass_on(failing, lambda: self._store.create(key, data))
        return created and failing is None

    def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
        self._pass_on(self._begin("put", key), lambda: self._store.put(key, parts, on_piece=on_piece))

    def get(self, key: str) -> bytes:
        return self._pass_on(self._begin("get", key), lambda: self._store.get(key))

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        return self._pass_on(self._begin("get_range", key), lambda: self._store.get_range(key, start, length))

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        failing = self._begin("list", prefix)
        return self._pass_on(failing, lambda: iter([*self._store.list(prefix, after=after)]))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._pass_on(self._begin("delete", key), partial(self._store.delete, [key]))

    def _begin(self, method: Method, key: str) -> Call | None:
        """Count a call; give it back if it is the one that fails."""
        with self._lock:
            if self._crashed:
                raise Crash(f"{method} of {key} after the crash")
            if self._methods is not None and method not in self._methods:
                return None
            call = Call(len(self._calls) + 1, method, key)
            self._calls.append(call)
            return call if call.number == self._fail_call else None

    def _pass_on(self, failing: Call | None, work: Callable[[], _Result]) -> _Result:
        if failing is None:
            return work()
        if self._moment == "before":
            raise self._failure(failing)
        result = work()
        if self._moment == "retried":
            return result
        raise self._failure(failing)

    def _failure(self, call: Call) -> BaseException:
        what = f"{call.method} of {call.key} (call {call.number}) was made to fail {self._moment} it took effect"
        if not self._crash:
            return StoreError(what, kind="injected")
        with self._lock:
            self._crashed = True
        return Crash(what)


def flip_bit(store: Store, key: str, byte: int, *, bit: int = 0) -> None:
    """Flip one bit of a stored object; a negative ``byte`` counts from its end.

    Raises:
        ConfigError: the object has no such byte.
        NotFoundError: nothing is at ``key``.
    """
    data = bytearray(store.get(key))
    if not -len(data) <= byte < len(data):
        raise ConfigError(f"{key} has {len(data)} bytes and none at {byte}", kind="fault")
    data[byte] ^= 1 << bit
    store.put(key, [data])


def truncate(store: Store, key: str, size: int) -> None:
    """Cut a stored object down to its first ``size`` bytes.

    Raises:
        ConfigError: the object is not longer than ``size``.
        NotFoundError: nothing is at ``key``.
    """
    data = store.get(key)
    if not 0 <= size < len(data):
        raise ConfigError(f"{key} has {len(data)} bytes and cannot be cut to {size}", kind="fault")
    store.put(key, [data[:size]])
