"""The benchmark's own server keeps what both sides of a comparison lean on."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from unbroken.errors import DamagedError, NotFoundError
from unbroken.store import Store, open_store

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, str]]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from servers import running_server

    monkeypatch.setenv("HOME", str(tmp_path))
    with running_server("memory", 1 << 20) as environment:  # less than is stored: both kinds of memory are used
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield environment


@pytest.fixture
def store(environment: dict[str, str]) -> Store:
    from servers import BUCKET

    return open_store(f"s3://{BUCKET}/tests/run")


@pytest.fixture
def client(environment: dict[str, str]) -> Iterator[Any]:
    from servers import s3_client

    with contextlib.closing(s3_client(environment)) as client:
        yield client


def test_of_racing_creates_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.create("journal/1", b"%d" % number), range(8)))
    assert won.count(True) == 1
    assert store.get("journal/1") == b"%d" % won.index(True)


def test_multipart_put_reads_back_in_ranges_across_its_parts(store: Store) -> None:
    data = bytes(range(256)) * (40 << 12)  # 40 MiB: three parts
    store.put("packs/1", [data])
    assert store.get("packs/1") == data
    edge = 16 << 20
    assert store.get_range("packs/1", edge - 5, 10) == data[edge - 5 : edge + 5]
    with pytest.raises(DamagedError):
        store.get_range("packs/1", len(data) - 5, 10)


def test_boto3_moves_a_large_file_both_ways(client: Any) -> None:
    from servers import BUCKET

    data = bytes(range(255)) * (80 << 10)
    client.upload_fileobj(io.BytesIO(data), BUCKET, "file")
    back = io.BytesIO()
    client.download_fileobj(BUCKET, "file", back)
    assert back.getvalue() == data


def test_listing_pages_to_its_end_and_forgets_what_was_deleted(store: Store) -> None:
    keys = [f"journal/{number:05d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, [b"x"]), keys))
    assert [found.key for found in store.list("journal")] == keys
    assert [found.key for found in store.list("journal", after=keys[-2])] == keys[-1:]
    store.delete(keys[:1])
    assert [found.key for found in store.list("journal")] == keys[1:]
    with pytest.raises(NotFoundError):
        store.get(keys[0])


def test_a_copy_has_the_bytes_of_its_source(client: Any) -> None:
    from servers import BUCKET

    client.put_object(Bucket=BUCKET, Key="a b", Body=b"content")
    client.copy_object(Bucket=BUCKET, Key="copy", CopySource={"Bucket": BUCKET, "Key": "a b"})
    client.delete_object(Bucket=BUCKET, Key="a b")
    assert client.get_object(Bucket=BUCKET, Key="copy")["Body"].read() == b"content"


def test_uploads_are_listed_until_they_are_complete(client: Any) -> None:
    from servers import BUCKET

    upload = client.create_multipart_upload(Bucket=BUCKET, Key="large")["UploadId"]
    assert [one["UploadId"] for one in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]] == [upload]
    client.abort_multipart_upload(Bucket=BUCKET, Key="large", UploadId=upload)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET)


@pytest.fixture
def byte_server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import byte_server

    return byte_server


def test_an_arena_that_forgets_holds_the_newest_bytes_and_says_which_are_gone(byte_server: Any) -> None:
    mib = 1 << 20
    arena = byte_server.Arena(4 * mib, forget=True)
    blocks = [arena.take(mib) for _ in range(4)]
    small = arena.take(100)
    assert all(arena.holds(block) for block in [*blocks, small])
    newer = arena.take(2 * mib)
    newer.memory[:] = b"n" * len(newer.memory)
    assert [arena.holds(block) for block in blocks] == [False, False, True, True]
    assert arena.holds(newer)
    assert bytes(blocks[0].memory[:1]) == b"n"  # the same memory, which is why it must say so
    whole = arena.take(3 * mib)  # does not fit in what is left of the round
    assert len(whole.memory) == 3 * mib
    assert not arena.holds(newer)
    assert arena.holds(small)
    assert arena.holds(arena.take(5 * mib))


def test_a_pace_waits_for_as_long_as_the_bytes_would_take(byte_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(byte_server.time, "monotonic", lambda: 100.25)
    monkeypatch.setattr(byte_server.time, "sleep", slept.append)
    byte_server.Pace(90e6, 0.02).hold(100.0, 90_000_000)
    byte_server.Pace(90e6, 0.02).hold(100.0, 9_000_000)
    byte_server.Pace().hold(100.0, 90_000_000)
    assert slept == [0.75]
