"""Boxes of tensors read from whatever slices ranks wrote: right, verified, and not a chunk more than needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.checkpoint.conftest import WatchedStore, tensor_of
from tests.checkpoint.sharded import box_of, boxed, cut, cuts_of, grid, put_sharded, tensors

from unbroken.checkpoint import Box, HostTensor, Manifest, Piece, read_pieces, read_tensors
from unbroken.checkpoint.chunks import READERS
from unbroken.checkpoint.dtypes import item_size
from unbroken.errors import DamagedError, NotFoundError
from unbroken.store import ReadsInto, Store
from unbroken.store.store import Buffer

Staged = dict[tuple[str, tuple[int, ...]], memoryview]


class Memory:
    """As much of a store as a reader of packs needs; notes what was asked for."""

    uri = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytearray] = {}
        self.requests: list[tuple[str, int, int]] = []

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        self.objects[key] = bytearray(b"".join(parts))

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        self.requests.append((key, start, length))
        return memoryview(bytes(self.objects[key][start : start + length]))


class DirectMemory(Memory):
    """The same of one that reads straight into place."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[memoryview] | None = []

    def read_into(self, key: str, start: int, targets: Sequence[memoryview]) -> None:
        self.requests.append((key, start, sum(map(len, targets))))
        for target in targets:
            if self.given is not None:
                self.given.append(target)
            target[:] = self.objects[key][start : start + len(target)]
            start += len(target)


def pieces_of(whole: HostTensor, boxes: Sequence[Box]) -> list[Piece]:
    """Memory that is not yet what is wanted."""
    item = item_size(whole.dtype)
    return [Piece(whole.name, box, memoryview(bytearray(b"\xee" * (box.size * item)))) for box in boxes]


def truth(whole: HostTensor, box: Box) -> bytes:
    return cut(bytes(whole.data), whole.shape, box, item_size(whole.dtype))


@contextmanager
def chunks_of(size: int) -> Iterator[None]:
    """Chunks of so many bytes, everywhere."""
    with mock.patch("unbroken.checkpoint.chunks.CHUNK", size), mock.patch("unbroken.checkpoint.digest.CHUNK", size):
        yield


@pytest.fixture(autouse=True)
def _all_threads_end() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("unbroken-")] == []


@st.composite
def saved(draw: st.DrawFn) -> tuple[list[HostTensor], list[list[HostTensor]]]:
    """Some tensors, and what each rank has of them: each tensor cut by a grid of its own."""
    whole = [draw(tensors(f"t{number}")) for number in range(draw(st.integers(1, 3)))]
    ranks: list[list[HostTensor]] = [[] for _ in range(draw(st.integers(1, 4)))]
    for each in whole:
        boxes = grid(each.shape, draw(cuts_of(each.shape)))
        for box in boxes:
            ranks[draw(st.integers(0, len(ranks) - 1))].append(boxed(each, box))
    return whole, ranks


_chunk_sizes = st.sampled_from([1, 3, 8, 17, 64, 1 << 20])


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(found=saved(), chunk=_chunk_sizes, direct=st.booleans(), data=st.data())
def test_any_grid_reads_what_any_other_grid_wrote(
    found: tuple[list[HostTensor], list[list[HostTensor]]], chunk: int, direct: bool, data: st.DataObject
) -> None:
    whole, ranks = found
    store = DirectMemory() if direct else Memory()
    assert isinstance(store, ReadsInto) == direct
    with chunks_of(chunk):
        manifest = put_sharded(store, ranks)  # type: ignore[arg-type]
        manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
        wanted = [(each, pieces_of(each, grid(each.shape, data.draw(cuts_of(each.shape))))) for each in whole]
        read_pieces(store, manifest, [piece for _, pieces in wanted for piece in pieces])  # type: ignore[arg-type]
        read = read_tensors(store, manifest)  # type: ignore[arg-type]
    for each, pieces in wanted:
        assert [bytes(piece.memory) for piece in pieces] == [truth(each, piece.box) for piece in pieces]
        assert read[each.name] == each.data


@settings(max_examples=150)
@given(whole=tensors(), chunk=_chunk_sizes, direct=st.booleans(), data=st.data())
def test_a_flipped_bit_is_damage_where_it_is_touched_and_nothing_where_it_is_not(
    whole: HostTensor, chunk: int, direct: bool, data: st.DataObject
) -> None:
    store = DirectMemory() if direct else Memory()
    boxes = grid(whole.shape, data.draw(cuts_of(whole.shape)))
    asked = [data.draw(box_of(whole.shape)) for _ in range(data.draw(st.integers(1, 2)))]
    with chunks_of(chunk):
        manifest = put_sharded(store, [[boxed(whole, box)] for box in boxes])  # type: ignore[arg-type]
        slices = [piece for piece in manifest.tensor(whole.name).slices if piece.length]
        assume(slices)
        stored = data.draw(st.sampled_from(slices))
        at = data.draw(st.integers(0, stored.length - 1))
        key = manifest.packs[stored.pack].key
        store.objects[key][stored.start + at] ^= 1 << data.draw(st.integers(0, 7))
        pieces = pieces_of(whole, asked)
        if touched(whole, Box(tuple(stored.offset), tuple(stored.shape)), asked, at // chunk * chunk, chunk):
            with pytest.raises(DamagedError) as caught:
                read_pieces(store, manifest, pieces)  # type: ignore[arg-type]
            assert caught.value.kind == "digest"
            assert whole.name in caught.value.message
            assert key in caught.value.message
        else:
            read_pieces(store, manifest, pieces)  # type: ignore[arg-type]
            assert [bytes(piece.memory) for piece in pieces] == [truth(whole, box) for box in asked]


def touched(whole: HostTensor, stored: Box, asked: Sequence[Box], start: int, chunk: int) -> bool:
    """Whether any byte of a chunk of a slice is asked for: looked up byte by byte."""
    item = item_size(whole.dtype)
    marks = bytearray(len(whole.data))
    numbers = b"".join(number.to_bytes(8, "little") for number in range(len(marks) // item))
    for box in asked:
        inside = cut(numbers, whole.shape, box, 8)
        for at in range(0, len(inside), 8):
            number = int.from_bytes(inside[at : at + 8], "little")
            marks[number * item : (number + 1) * item] = b"\1" * item
    return any(cut(bytes(marks), whole.shape, stored, item)[start : start + chunk])


def rows(count: int, columns: int, ranks: int, name: str = "w") -> tuple[HostTensor, list[list[HostTensor]]]:
    """A matrix of float32, cut along its first dimension."""
    whole = tensor_of(name, "float32", (count, columns))
    at = [[count * rank // ranks for rank in range(1, ranks)], []]
    return whole, [[boxed(whole, box)] for box in grid(whole.shape, at)]


class TestRequests:
    """Chunks of 64 bytes are four rows of four float32."""

    @pytest.fixture(params=[Memory, DirectMemory])
    def store(self, request: pytest.FixtureRequest, small_chunks: int) -> Memory:
        store: Memory = request.param()
        return store

    def test_a_shard_by_another_number_of_ranks_reads_only_the_chunks_it_touches(self, store: Memory) -> None:
        whole, ranks = rows(96, 4, 4)  # 24 rows each: 6 chunks
        manifest = put_sharded(store, ranks)  # type: ignore[arg-type]
        (piece,) = pieces_of(whole, [Box((64, 0), (32, 4))])  # the third of three: 8 rows of rank 2, all of rank 3
        counts: list[int] = []
        read_pieces(store, manifest, [piece], on_bytes=counts.append)  # type: ignore[arg-type]
        assert bytes(piece.memory) == truth(whole, piece.box)
        assert sorted({key for key, _, _ in store.requests}) == [pack.key for pack in manifest.packs[2:]]
        assert [length for _, _, length in store.requests] == [64] * 8
        assert sum(counts) == 512 == len(piece.memory)

    def test_borders_within_chunks_cost_one_chunk_each(self, store: Memory) -> None:
        whole, ranks = rows(96, 4, 4)
        manifest = put_sharded(store, ranks)  # type: ignore[arg-type]
        (piece,) = pieces_of(whole, [Box((25, 0), (22, 4))])  # of rank 1 all but the first and the last row
        counts: list[int] = []
        read_pieces(store, manifest, [piece], on_bytes=counts.append)  # type: ignore[arg-type]
        assert bytes(piece.memory) == truth(whole, piece.box)
        assert len(store.requests) == 6
        assert sum(counts) == 384
        if isinstance(store, DirectMemory):
            assert store.given is not None
            borders = [given for given in store.given if not lies_in(given, piece.memory)]
            assert len(borders) == 2

    def test_chunks_between_the_wanted_columns_are_not_read(self, store: Memory) -> None:
        whole, ranks = rows(8, 64, 2)  # a row is 256 bytes: 4 chunks
        manifest = put_sharded(store, ranks)  # type: ignore[arg-type]
        (piece,) = pieces_of(whole, [Box((0, 16), (8, 16))])  # the second chunk of each row
        read_pieces(store, manifest, [piece])  # type: ignore[arg-type]
        assert bytes(piece.memory) == truth(whole, piece.box)
        assert sorted(start % 256 for _, start, _ in store.requests) == [store_start(manifest) % 256] * 8
        assert [length for _, _, length in store.requests] == [64] * 8

    def test_a_chunk_that_two_pieces_want_is_read_once(self, store: Memory) -> None:
        whole, ranks = rows(8, 4, 1)
        manifest = put_sharded(store, ranks)  # type: ignore[arg-type]
        pieces = pieces_of(whole, [Box((0, 0), (8, 2)), Box((0, 2), (8, 2)), Box((0, 0), (8, 4)), Box((3, 1), (2, 3))])
        read_pieces(store, manifest, pieces)  # type: ignore[arg-type]
        assert [bytes(piece.memory) for piece in pieces] == [truth(whole, piece.box) for piece in pieces]
        assert len(store.requests) == 2

    def test_small_slices_side_by_side_are_read_together(self, store: Memory) -> None:
        whole, boxes = rows(8, 1, 8)
        manifest = put_sharded(store, [[box for (box,) in boxes]])  # type: ignore[arg-type]
        (piece,) = pieces_of(whole, [Box((2, 0), (4, 1))])
        read_pieces(store, manifest, [piece])  # type: ignore[arg-type]
        assert [length for _, _, length in store.requests] == [16]
        assert bytes(piece.memory) == truth(whole, piece.box)

    def test_what_holds_nothing_asks_for_nothing(self, store: Memory) -> None:
        whole, ranks = rows(8, 4, 2)
        empty = tensor_of("none", "float32", (0, 4))
        manifest = put_sharded(store, [*ranks, [empty]])  # type: ignore[arg-type]
        read_pieces(
            store,  # type: ignore[arg-type]
            manifest,
            [*pieces_of(whole, [Box((8, 0), (0, 4))]), *pieces_of(empty, [Box((0, 1), (0, 2))])],
        )
        read_pieces(store, manifest, [])  # type: ignore[arg-type]
        assert store.requests == []


def store_start(manifest: Manifest) -> int:
    """Where the second chunk of a row begins in each pack."""
    starts = {piece.start + 64 for record in manifest.tensors for piece in record.slices}
    assert len(starts) == 1
    return starts.pop()


def lies_in(view: memoryview, memory: memoryview) -> bool:
    """Whether a view is of that memory: shows by writing."""
    before = bytes(memory)
    view[0] ^= 0xFF
    changed = bytes(memory) != before
    view[0] ^= 0xFF
    return changed


def test_whole_slices_are_read_straight_into_place(small_chunks: int) -> None:
    whole, ranks = rows(64, 5, 4)
    store = DirectMemory()
    manifest = put_sharded(store, ranks)  # type: ignore[arg-type]
    (piece,) = pieces_of(whole, [Box.whole(whole.shape)])
    read_pieces(store, manifest, [piece])  # type: ignore[arg-type]
    assert piece.memory == whole.data
    assert store.given
    assert all(lies_in(given, piece.memory) for given in store.given)


class Rooms:
    """Counts the bytes of the memory that chunks have of their own."""

    def __init__(self) -> None:
        self.held = self.most = 0
        self.lock = threading.Lock()

    def bytearray(self, size: int) -> bytearray:
        rooms = self

        class Room(bytearray):
            def __del__(self) -> None:
                with rooms.lock:
                    rooms.held -= len(self)

        with self.lock:
            self.held += size
            self.most = max(self.most, self.held)
        return Room(size)


def test_no_more_chunks_are_held_than_there_are_readers(small_chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, ranks = rows(2000, 16, 3)
    store, rooms = DirectMemory(), Rooms()
    store.given = None
    manifest = put_sharded(store, ranks)  # type: ignore[arg-type]
    (piece,) = pieces_of(whole, [Box((0, 1), (2000, 14))])  # a part of each of two thousand chunks
    monkeypatch.setattr("unbroken.checkpoint.pieces.bytearray", rooms.bytearray, raising=False)
    read_pieces(store, manifest, [piece])  # type: ignore[arg-type]
    assert bytes(piece.memory) == truth(whole, piece.box)
    assert len(store.requests) == 2000
    assert 0 < rooms.most <= READERS * small_chunks
    assert rooms.held == 0


def test_boxes_come_back_from_real_stores(store: Store, small_chunks: int) -> None:
    whole, ranks = rows(37, 9, 5)
    manifest = put_sharded(store, ranks)
    pieces = pieces_of(whole, grid(whole.shape, [[10, 20, 21], [4]]))
    read_pieces(store, manifest, pieces)
    assert [bytes(piece.memory) for piece in pieces] == [truth(whole, piece.box) for piece in pieces]
    assert read_tensors(store, manifest)["w"] == whole.data


class TestStaged:
    @pytest.fixture
    def saved(self, folder_store: Store, small_chunks: int) -> tuple[HostTensor, Manifest, Staged]:
        whole, ranks = rows(64, 5, 4)
        manifest = put_sharded(folder_store, ranks)
        return whole, manifest, {(box.name, box.offset): memoryview(bytes(box.data)) for (box,) in ranks}

    def read(
        self,
        store: Store,
        whole: HostTensor,
        manifest: Manifest,
        staged: Staged,
    ) -> list[str]:
        """Keys that the store was asked for."""
        asked: list[str] = []
        counts: list[int] = []
        pieces = pieces_of(whole, [Box((3, 0), (40, 5)), Box((0, 1), (64, 2))])
        watched = WatchedStore(store, lambda _, key: asked.append(key))
        read_pieces(watched, manifest, pieces, staged=staged, on_bytes=counts.append)
        assert [bytes(piece.memory) for piece in pieces] == [truth(whole, piece.box) for piece in pieces]
        assert sum(counts) == manifest.size
        return asked

    def test_slices_in_memory_are_taken_from_there(
        self, folder_store: Store, saved: tuple[HostTensor, Manifest, Staged], caplog: pytest.LogCaptureFixture
    ) -> None:
        assert self.read(folder_store, *saved) == []
        assert caplog.records == []

    def test_slices_of_other_machines_are_read_from_the_store_without_a_word(
        self, folder_store: Store, saved: tuple[HostTensor, Manifest, Staged], caplog: pytest.LogCaptureFixture
    ) -> None:
        whole, manifest, staged = saved
        del staged["w", (16, 0)]
        assert set(self.read(folder_store, whole, manifest, staged)) == {manifest.packs[1].key}
        assert caplog.records == []

    @pytest.mark.parametrize("difference", ["bit", "shorter", "longer"])
    def test_what_differs_is_read_from_the_store_and_said(
        self,
        folder_store: Store,
        saved: tuple[HostTensor, Manifest, Staged],
        difference: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        whole, manifest, staged = saved
        data = bytearray(staged["w", (48, 0)])
        if difference == "bit":
            data[100] ^= 1
        staged["w", (48, 0)] = memoryview({"bit": data, "shorter": data[:-1], "longer": data + b"\0"}[difference])
        asked = self.read(folder_store, whole, manifest, staged)
        assert set(asked) == {manifest.packs[3].key}
        assert len(asked) == (1 if difference == "bit" else 5)
        (record,) = caplog.records
        assert "w" in record.getMessage()


class TestRefusals:
    @pytest.fixture
    def saved(self, folder_store: Store) -> tuple[HostTensor, Manifest]:
        whole, ranks = rows(8, 4, 2)
        return whole, put_sharded(folder_store, ranks)

    def test_a_tensor_that_is_not_there_is_not_found(
        self, folder_store: Store, saved: tuple[HostTensor, Manifest]
    ) -> None:
        for names in (["x"], ["w", "x"]):
            pieces = [Piece(name, Box((0, 0), (1, 4)), memoryview(bytearray(16))) for name in names]
            with pytest.raises(NotFoundError) as caught:
                read_pieces(folder_store, saved[1], pieces)
            assert caught.value.kind == "tensor"

    @pytest.mark.parametrize(
        ("box", "size"),
        [
            (Box((0, 0), (1, 4)), 15),
            (Box((0, 0), (1, 4)), 17),
            (Box((8, 0), (1, 4)), 16),
            (Box((0, 3), (1, 2)), 8),
            (Box((-1, 0), (1, 4)), 16),
            (Box((0,), (1,)), 16),
            (Box((0, 9), (0, 0)), 0),
        ],
    )
    def test_a_box_outside_the_tensor_or_memory_of_another_size_is_refused(
        self, folder_store: Store, saved: tuple[HostTensor, Manifest], box: Box, size: int
    ) -> None:
        with pytest.raises(ValueError, match="w "):
            read_pieces(folder_store, saved[1], [Piece("w", box, memoryview(bytearray(size)))])

    def test_memory_that_may_not_be_written_is_refused(
        self, folder_store: Store, saved: tuple[HostTensor, Manifest]
    ) -> None:
        with pytest.raises(ValueError, match="may not be written"):
            read_pieces(folder_store, saved[1], [Piece("w", Box((0, 0), (1, 4)), memoryview(bytes(16)))])

    @pytest.mark.parametrize("slices", [[0], [0, 1, 1], []], ids=["a hole", "twice", "none"])
    def test_memory_that_no_slice_fills_is_never_given_out(
        self, folder_store: Store, saved: tuple[HostTensor, Manifest], slices: list[int]
    ) -> None:
        whole, manifest = saved
        (record,) = manifest.tensors
        wrong = msgspec.structs.replace(record, slices=[record.slices[number] for number in slices])
        with pytest.raises(DamagedError, match="w do not make up"):
            read_pieces(
                folder_store,
                msgspec.structs.replace(manifest, tensors=[wrong]),
                pieces_of(whole, [Box.whole(whole.shape)]),
            )

    def test_a_missing_pack_is_damage_that_names_tensor_and_pack(
        self, folder_store: Store, saved: tuple[HostTensor, Manifest]
    ) -> None:
        whole, manifest = saved
        folder_store.delete([manifest.packs[1].key])
        read_pieces(folder_store, manifest, pieces_of(whole, [Box((0, 0), (4, 4))]))
        with pytest.raises(DamagedError) as caught:
            read_pieces(folder_store, manifest, pieces_of(whole, [Box((3, 0), (2, 4))]))
        assert caught.value.kind == "missing"
        assert "w" in caught.value.message
        assert manifest.packs[1].key in caught.value.message
