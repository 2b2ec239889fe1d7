"""Reading tensors when the store fails or its bytes are wrong."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.checkpoint.conftest import Attempt, WatchedStore

from unbroken.checkpoint import Manifest, TensorRecord, load_manifest, read_tensors
from unbroken.checkpoint.chunks import READERS
from unbroken.checkpoint.digest import CHUNK
from unbroken.errors import DamagedError, NotFoundError, StoreError
from unbroken.journal import Journal
from unbroken.store import Store, open_store
from unbroken.testing import Crash, FaultyStore, flip_bit, truncate

Caplog = pytest.LogCaptureFixture
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


def test_after_an_error_no_further_requests_are_made(store: Store, manifest: Manifest) -> None:
    first: list[threading.Thread] = []
    requests: list[str] = []
    lock = threading.Lock()

    def before(_method: str, key: str) -> None:
        with lock:
            requests.append(key)
            if not first:
                first.append(threading.current_thread())
                raise StoreError("the first request fails")
        first[0].join(60)
        assert not first[0].is_alive()

    with pytest.raises(StoreError, match="the first request fails"):
        read_tensors(WatchedStore(store, before), manifest)
    assert len(requests) <= READERS  # of sixty


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


def test_every_byte_that_arrives_is_told(store: Store, manifest: Manifest) -> None:
    counts: list[int] = []
    read_tensors(store, manifest, on_bytes=counts.append)
    assert sum(counts) == manifest.size
    assert min(counts) > 0


def test_an_interrupt_of_the_caller_leaves_no_thread_and_makes_no_further_requests(
    store: Store, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()

    class Stop(threading.Event):
        def set(self) -> None:
            super().set()
            stopped.set()

    monkeypatch.setattr("unbroken.checkpoint.parallel.Event", Stop)
    requests: list[str] = []

    def interrupt(_method: str, key: str) -> None:
        requests.append(key)
        if len(requests) == READERS:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert stopped.wait(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            read_tensors(WatchedStore(store, interrupt), manifest)
        assert reading_threads() == []
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(requests) == READERS  # of sixty


class Handed(bytearray):
    """Bytes that a store handed out; counts how many are held at a time."""

    held = most = 0
    lock = threading.Lock()

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        with Handed.lock:
            Handed.held += len(data)
            Handed.most = max(Handed.most, Handed.held)

    def __del__(self) -> None:
        with Handed.lock:
            Handed.held -= len(self)


class CountingStore(WatchedStore):
    """Hands out bytes that are counted until nobody holds them any more."""

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        return memoryview(Handed(bytes(super().get_range(key, start, length)))).toreadonly()


def test_no_more_chunks_are_held_than_there_are_readers(
    folder_store: Store, small_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Attempt(folder_store)
    attempt.save(1, {"w": bytes(i % 251 for i in range(1000 * small_chunks))})
    manifest = load_manifest(folder_store, attempt.journal.state.checkpoints[-1])
    monkeypatch.setattr(Handed, "held", 0)
    monkeypatch.setattr(Handed, "most", 0)
    read_tensors(CountingStore(folder_store), manifest)
    assert 0 < Handed.most <= READERS * small_chunks  # of a thousand
    assert Handed.held == 0


def test_the_bound_on_memory_is_as_promised() -> None:
    assert READERS * CHUNK <= 256_000_000


class NoStore:
    """A store that must not be asked."""

    uri = "nowhere"

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the store was asked to {name}")


class TestStaged:
    @pytest.fixture
    def staged(self, small_chunks: int) -> dict[str, bytearray]:
        return {name: bytearray([i]) * (2 * small_chunks + 9) for i, name in enumerate(NAMES)}

    @pytest.mark.parametrize("kind", [bytearray, bytes], ids=["writable", "read-only"])
    def test_the_store_is_not_asked_where_memory_agrees(
        self,
        manifest: Manifest,
        staged: dict[str, bytearray],
        kind: Callable[[bytearray], bytearray | bytes],
        caplog: Caplog,
    ) -> None:
        views = {name: memoryview(kind(data)) for name, data in staged.items()}
        counts: list[int] = []
        read = read_tensors(NoStore(), manifest, staged=views, on_bytes=counts.append)  # type: ignore[arg-type]
        assert read == staged
        read["t00"][0] ^= 1
        assert bytes(views["t00"]) == staged["t00"]  # a copy, that may be trained on
        assert sum(counts) == manifest.size
        assert caplog.records == []

    @pytest.mark.parametrize("difference", ["bit", "missing", "shorter", "longer"])
    def test_what_differs_is_read_from_the_store_and_said_once(
        self, store: Store, manifest: Manifest, staged: dict[str, bytearray], difference: str, caplog: Caplog
    ) -> None:
        want = {name: bytes(data) for name, data in staged.items()}
        if difference == "bit":
            staged["t05"][70] ^= 1
        elif difference == "missing":
            del staged["t05"]
        else:
            staged["t05"] = staged["t05"][:-1] if difference == "shorter" else staged["t05"] + b"\0"
        requests: list[str] = []
        counts: list[int] = []
        watched = WatchedStore(store, lambda _, key: requests.append(key))
        views = {name: memoryview(data) for name, data in staged.items()}
        assert read_tensors(watched, manifest, staged=views, on_bytes=counts.append) == want
        assert len(requests) in ((1,) if difference == "bit" else (2, 3))
        assert sum(counts) == manifest.size
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "t05" in record.getMessage()
        assert "t06" not in record.getMessage()

    def test_names_that_the_checkpoint_lacks_are_ignored(
        self, manifest: Manifest, staged: dict[str, bytearray]
    ) -> None:
        views = {name: memoryview(data) for name, data in {**staged, "more": bytearray(3)}.items()}
        read = read_tensors(NoStore(), manifest, ["t01"], staged=views)  # type: ignore[arg-type]
        assert read == {"t01": staged["t01"]}
