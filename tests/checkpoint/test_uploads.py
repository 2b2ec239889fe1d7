"""Objects that are put at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from tests.checkpoint.conftest import WatchedStore

from unbroken.checkpoint.digest import CHUNK, DigestsOnTheWay, chunk_digests
from unbroken.checkpoint.uploads import AT_ONCE, Upload, _Round, put_all
from unbroken.errors import StoreError
from unbroken.store import Store
from unbroken.store.store import PIECE, Buffer, OnPiece
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


def test_what_was_put_is_counted(folder_store: Store) -> None:
    assert put_all(folder_store, uploads(7)) == sum(upload.size for upload in uploads(7)) == 28


def test_every_byte_of_every_object_is_announced_and_never_two_at_once(store: Store) -> None:
    told: list[int] = []
    inside = threading.Lock()

    def on_piece(size: int) -> None:
        assert inside.acquire(blocking=False)
        told.append(size)
        time.sleep(0)  # lets another thread in, if there is one
        inside.release()

    several = [Upload(f"o/{number}", [b"a" * number, bytes(PIECE + 1)]) for number in range(2 * AT_ONCE)]
    assert put_all(store, several, on_piece=on_piece) == sum(told)
    assert max(told) <= PIECE


class StopError(Exception):
    """What a listener raises."""


def test_a_listener_that_raises_once_stops_all_that_is_under_way_at_their_next_piece(folder_store: Store) -> None:
    error = StopError("enough")
    begun = threading.Barrier(AT_ONCE, timeout=SECONDS)
    pieces: list[str] = []

    class Slow(WatchedStore):
        def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
            assert on_piece is not None
            begun.wait()
            on_piece(len(parts[0]))
            if key != "o/1":
                until_failed(round_)
                pieces.append(key)
            on_piece(len(parts[1]))
            raise AssertionError("it goes on")

    def stop(size: int) -> None:
        if size == 1001:
            raise error

    several = [Upload(f"o/{number}", [bytes(1000 + number), b"b"]) for number in range(2 * AT_ONCE)]
    round_ = _Round(Slow(folder_store), several, stop)
    with pytest.raises(StopError) as caught:
        round_.run()
    assert caught.value is error
    assert sorted(pieces) == ["o/0", "o/2", "o/3"]
    assert threads() == []


def test_an_object_of_one_piece_that_is_under_way_is_let_go_on(folder_store: Store) -> None:
    begun = threading.Barrier(2, timeout=SECONDS)

    class Failing(WatchedStore):
        def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
            begun.wait()
            if key == "o/1":
                raise StoreError("no", kind="full")
            until_failed(round_)
            super().put(key, parts, on_piece=on_piece)

    round_ = _Round(Failing(folder_store), uploads(2))
    with pytest.raises(StoreError):
        round_.run()
    assert [info.key for info in folder_store.list("")] == ["o/0"]


def test_what_comes_next_is_found_out_while_the_first_is_under_way(folder_store: Store) -> None:
    asked = threading.Event()

    class Waiting(WatchedStore):
        def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
            if key == "o/0":
                assert asked.wait(SECONDS)
            super().put(key, parts, on_piece=on_piece)

    def found() -> Iterator[Upload]:
        yield from uploads(1)
        asked.set()
        yield Upload("o/last", [b"x"])

    assert put_all(Waiting(folder_store), found()) == 2
    assert {info.key for info in folder_store.list("")} == {"o/0", "o/last"}


def test_an_error_while_finding_out_what_comes_next_is_raised(folder_store: Store) -> None:
    def broken() -> Iterator[Upload]:
        yield from uploads(2)
        raise ValueError("a fault of our own")

    with pytest.raises(ValueError, match="of our own"):
        put_all(folder_store, broken())
    assert threads() == []


def test_digests_are_whole_at_the_end_whether_or_not_the_store_announces_pieces(folder_store: Store) -> None:
    class Silent(WatchedStore):
        def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
            super().put(key, parts)

    data = bytes(range(256)) * (CHUNK // 128)
    for store in (folder_store, Silent(folder_store)):
        digests: list[str] = []
        put_all(store, [Upload("p", [b"header", data], DigestsOnTheWay([(data, digests)], skip=6))])
        assert digests == chunk_digests(data)
        assert len(digests) == 2


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
