"""Objects that are put at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
from tests.checkpoint.conftest import WatchedStore

from unbroken.checkpoint.uploads import AT_ONCE, Upload, _Round, put_all
from unbroken.errors import StoreError
from unbroken.store import Store
from unbroken.store.store import Buffer, OnPiece
from unbroken.testing import Crash

SECONDS = 60
"""How long to wait for what must happen."""


def uploads(count: int) -> list[Upload]:
    return [Upload(f"o/{number}", [b"a" * number, b"b"]) for number in range(count)]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("unbroken-put")]


@pytest.mark.parametrize("count", [0, 1, 2, AT_ONCE, 5 * AT_ONCE + 1])
def test_all_are_there_at_the_end(store: Store, count: int) -> None:
    put_all(store, uploads(count))
    assert {info.key: info.size for info in store.list("")} == {up.key: up.size for up in uploads(count)}
    assert threads() == []


def test_as_many_as_allowed_are_under_way_and_no_more(folder_store: Store) -> None:
    together = threading.Barrier(AT_ONCE, timeout=SECONDS)
    lock = threading.Lock()
    seen = [0]

    class Counting(WatchedStore):
        now = 0

        def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
            with lock:
                self.now += 1
                seen.append(self.now)
            together.wait()
            with lock:
                self.now -= 1

    put_all(Counting(folder_store), uploads(3 * AT_ONCE))
    assert max(seen) == AT_ONCE


@pytest.mark.parametrize("error", [StoreError("no", kind="full"), Crash("gone"), ValueError("a fault of our own")])
def test_the_first_error_is_raised_when_the_others_have_ended_and_nothing_more_is_begun(
    folder_store: Store, error: BaseException
) -> None:
    begun: list[str] = []
    ended: list[str] = []
    together = threading.Barrier(AT_ONCE, timeout=SECONDS)

    class Failing(WatchedStore):
        def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
            begun.append(key)
            together.wait()
            if key == "o/1":
                raise error
            until_failed(round_)
            ended.append(key)
            raise StoreError("too late", kind="unavailable")

    round_ = _Round(Failing(folder_store), uploads(2 * AT_ONCE))
    with pytest.raises(type(error)) as caught:
        round_.run()
    assert caught.value is error
    assert sorted(begun) == [f"o/{number}" for number in range(AT_ONCE)]
    assert sorted(ended) == [key for key in sorted(begun) if key != "o/1"]
    assert threads() == []


def until_failed(round_: _Round) -> None:
    """Return when the round knows of a failure."""
    deadline = time.monotonic() + SECONDS
    while not round_._errors and time.monotonic() < deadline:
        time.sleep(0.001)


def test_a_put_that_hangs_keeps_no_process_alive(folder_store: Store) -> None:
    seen: list[bool] = []

    class Watching(WatchedStore):
        def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
            together.wait()
            current = threading.current_thread()
            seen.append(current is caller or current.daemon)

    together, caller = threading.Barrier(2, timeout=SECONDS), threading.current_thread()
    put_all(Watching(folder_store), uploads(2))
    assert seen == [True, True]
