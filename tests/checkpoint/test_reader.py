"""Reading tensors when the store fails or its bytes are wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.checkpoint.conftest import Attempt, WatchedStore

from unbroken.checkpoint import Manifest, TensorRecord, load_manifest, read_tensors
from unbroken.checkpoint.chunks import READERS
from unbroken.errors import DamagedError, NotFoundError, StoreError
from unbroken.journal import Journal
from unbroken.store import Store, open_store
from unbroken.testing import Crash, FaultyStore, flip_bit, truncate

NAMES = [f"t{i:02d}" for i in range(20)]


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("unbroken-")]


@pytest.fixture(autouse=True)
def _all_threads_end() -> Iterator[None]:
    yield
    assert reading_threads() == []


@pytest.fixture
def manifest(store: Store, small_chunks: int) -> Manifest:
    """Twenty tensors of three chunks each in one pack."""
    attempt = Attempt(store)
    attempt.save(1, {name: bytes([i]) * (2 * small_chunks + 9) for i, name in enumerate(NAMES)})
    return load_manifest(store, attempt.journal.state.checkpoints[-1])


@pytest.mark.parametrize("name", ["t00", "t07", "t19"])
def test_one_bad_chunk_among_many_is_damage_that_names_tensor_and_pack(
    store: Store, manifest: Manifest, name: str
) -> None:
    (piece,) = manifest.tensor(name).slices
    flip_bit(store, manifest.packs[0].key, piece.start + 70)
    with pytest.raises(DamagedError) as caught:
        read_tensors(store, manifest)
    assert caught.value.kind == "digest"
    assert name in caught.value.message
    assert manifest.packs[0].key in caught.value.message
    others = [other for other in NAMES if other != name]
    assert list(read_tensors(store, manifest, others)) == others  # only what is needed must be sound


def test_a_truncated_pack_is_damage_that_names_tensor_and_pack(store: Store, manifest: Manifest) -> None:
    truncate(store, manifest.packs[0].key, manifest.packs[0].size - 1)
    with pytest.raises(DamagedError) as caught:
        read_tensors(store, manifest)
    assert caught.value.kind == "truncated"
    assert "t19" in caught.value.message
    assert manifest.packs[0].key in caught.value.message


def test_a_missing_pack_is_damage_that_names_tensor_and_pack(store: Store, manifest: Manifest) -> None:
    store.delete([manifest.packs[0].key])
    with pytest.raises(DamagedError) as caught:
        read_tensors(store, manifest, ["t03"])
    assert caught.value.kind == "missing"
    assert "t03" in caught.value.message
    assert manifest.packs[0].key in caught.value.message


@pytest.mark.parametrize("call", [1, 5, 30])
def test_a_failing_store_is_not_mistaken_for_damage(store: Store, manifest: Manifest, call: int) -> None:
    faulty = FaultyStore(store, fail_call=call, methods={"get_range"})
    with pytest.raises(StoreError) as caught:
        read_tensors(faulty, manifest)
    assert caught.value.kind == "injected"


def test_the_end_of_the_process_in_a_thread_reaches_the_caller(store: Store, manifest: Manifest) -> None:
    with pytest.raises(Crash):
        read_tensors(FaultyStore(store, fail_call=9, crash=True), manifest)


def test_after_an_error_no_further_requests_are_made(
    store: Store, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving = threading.Event()

    class Pool(ThreadPoolExecutor):
        def __exit__(self, *error: object) -> None:
            leaving.set()  # by now the reader has cancelled what has not begun
            self.shutdown()

    monkeypatch.setattr("unbroken.checkpoint.parallel.ThreadPoolExecutor", Pool)
    requests: list[str] = []
    lock = threading.Lock()

    def before(_method: str, key: str) -> None:
        with lock:
            requests.append(key)
            first = len(requests) == 1
        if first:
            raise StoreError("the first request fails")
        assert leaving.wait(60)

    with pytest.raises(StoreError, match="the first request fails"):
        read_tensors(WatchedStore(store, before), manifest)
    assert len(requests) <= READERS + 1  # of sixty


def test_a_folder_that_went_away_is_no_damage(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "mount"), create=True)
    Attempt(store).save(1, {"w": b"1"})
    journal = Journal.open(store)
    manifest = load_manifest(store, journal.state.checkpoints[-1])
    (tmp_path / "mount").rename(tmp_path / "elsewhere")
    for work in (
        lambda: read_tensors(store, manifest),
        lambda: load_manifest(store, journal.state.checkpoints[-1]),
    ):
        with pytest.raises(NotFoundError) as caught:
            work()
        assert caught.value.kind == "folder"


def test_a_tensor_that_is_not_there_is_not_found(store: Store, manifest: Manifest) -> None:
    with pytest.raises(NotFoundError) as caught:
        read_tensors(store, manifest, ["t00", "t99"])
    assert caught.value.kind == "tensor"
    assert "t99" in caught.value.message


def test_a_tensor_that_is_asked_for_twice_is_read_once(store: Store, manifest: Manifest) -> None:
    assert list(read_tensors(store, manifest, ["t01", "t00", "t01"])) == ["t01", "t00"]


def test_bytes_land_in_the_memory_that_the_caller_gave(store: Store, manifest: Manifest) -> None:
    given: dict[str, bytearray] = {}

    def allocate(record: TensorRecord) -> memoryview:
        given[record.name] = bytearray(record.size)
        return memoryview(given[record.name])

    read_tensors(store, manifest, ["t05"], allocate=allocate)
    assert given == {"t05": bytearray([5]) * 137}


@pytest.mark.parametrize("difference", [-1, 1])
def test_memory_of_another_size_is_refused_and_not_called_damage(
    store: Store, manifest: Manifest, difference: int
) -> None:
    with pytest.raises(ValueError, match="t00 has 137 bytes"):
        read_tensors(store, manifest, allocate=lambda record: memoryview(bytearray(record.size + difference)))
