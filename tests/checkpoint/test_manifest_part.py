"""Reading as much of a manifest as one rank needs: few records where little is needed, all of them where nothing tells
which, and never less than what is wanted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoint.conftest import WatchedStore, state_of, tensor, tensor_of
from tests.checkpoint.ranks import Gang, box_of, cut_out, rows

from unbroken.checkpoint import (
    Box,
    CheckpointWriter,
    HostTensor,
    Manifest,
    Piece,
    TensorRecord,
    Wanted,
    holds_state,
    load_manifest,
    load_manifest_part,
    load_rank_part,
    read_pieces,
)
from unbroken.checkpoint.digest import sha256
from unbroken.errors import DamagedError, StoreError
from unbroken.journal import CheckpointRecord, Journal, Origin
from unbroken.store import Store, open_store
from unbroken.testing import FaultyStore, flip_bit

ROWS, WIDTH = 48, 2


def sharded(name: str, world: int, length: int = ROWS) -> list[HostTensor]:
    """As torch.chunk cuts rows; the last ranks may have none."""
    size = -(-length // world)
    lengths = [max(0, min(size, length - rank * size)) for rank in range(world)]
    return rows(tensor_of(name, "float32", (length, WIDTH)), *lengths)


class Saved:
    """A checkpoint of ``world`` ranks: sharded tensors ``a`` and ``b`` and a short one; ``small`` is rank 0's, and
    ``dealt`` of one other rank."""

    def __init__(self, store: Store, world: int, dealer: int = 0) -> None:
        self.world = world
        self.read: list[str] = []
        self.gang = Gang(store, world)
        held = [list(each) for each in zip(*(sharded(n, world) for n in "ab"), sharded("short", world, 3), strict=True)]
        held[0].append(tensor("small", b"12"))
        held[dealer].append(tensor("dealt", b"34567"))
        self.whole = {name: tensor_of(name, "float32", (ROWS, WIDTH)) for name in "ab"}
        self.whole |= {"short": tensor_of("short", "float32", (3, WIDTH))}
        self.whole |= {"small": tensor("small", b"12"), "dealt": tensor("dealt", b"34567")}
        self.gang.save(1, held)
        self.store = WatchedStore(store, self._note)

    def _note(self, method: str, key: str) -> None:
        if method == "get" and key.startswith("ranks/"):
            self.read.append(key)

    @property
    def record(self) -> CheckpointRecord:
        return self.gang.journal.state.checkpoints[-1]

    @property
    def ranks_read(self) -> set[int]:
        return {int(key.rsplit("/", 1)[1].split("-")[0]) for key in self.read}

    def key(self, rank: int) -> str:
        return load_rank_part(self.gang.store, self.record, 0).ranks[rank].key

    def load(self, rank: int, world: int, wanted: Any = None) -> Manifest:
        self.read.clear()
        return load_manifest_part(self.store, self.record, rank=rank, world_size=world, wanted=wanted)


def share(rank: int, world: int, likely: Iterable[int] = ()) -> Any:
    """What a rank of a training that shards rows wants."""

    def boxes(record: TensorRecord) -> Sequence[Box]:
        if record.name not in ("a", "b", "short"):
            return [Box.whole(record.shape)]
        size = -(-record.shape[0] // world)
        begin = min(rank * size, record.shape[0])
        return [Box((begin, 0), (min(size, record.shape[0] - begin), WIDTH))]

    names = ["a", "b", "short", "small", "dealt"]
    return lambda _: Wanted(names, boxes, lambda name: likely if name == "dealt" else ())


def demand_content(saved: Saved, manifest: Manifest, wanted: Wanted) -> None:
    """The boxes that are wanted can be read from the part, and are the truth."""
    pieces = []
    for name in wanted.names:
        record = manifest.tensor(name)
        item = 4 if record.dtype == "float32" else 1
        pieces += [Piece(name, box, memoryview(bytearray(box.size * item))) for box in wanted.boxes(record) if box.size]
    read_pieces(saved.gang.store, manifest, pieces)
    for piece in pieces:
        assert bytes(piece.memory) == cut_out(saved.whole[piece.name], (piece.box.offset, piece.box.shape))


@pytest.mark.parametrize("rank", [0, 5, 15])
def test_in_the_same_layout_a_rank_reads_its_own_record_and_rank_0_s(folder_store: Store, rank: int) -> None:
    saved = Saved(folder_store, 16)
    part = saved.load(rank, 16, share(rank, 16))
    assert saved.ranks_read == {0, rank}
    demand_content(saved, part, share(rank, 16)(part))
    assert part.state == load_manifest(folder_store, saved.record).state
    own = [number for number, local in enumerate(part.locals) if local is not None]
    assert own == sorted({0, rank})


def test_on_half_the_ranks_each_reads_two_records_beside_rank_0_s(folder_store: Store) -> None:
    saved = Saved(folder_store, 16)
    for rank in range(8):
        demand_content(saved, part := saved.load(rank, 8, share(rank, 8)), share(rank, 8)(part))
        assert saved.ranks_read == {0, rank, 2 * rank, 2 * rank + 1}


def test_on_more_ranks_each_reads_the_record_that_holds_its_rows(folder_store: Store) -> None:
    saved = Saved(folder_store, 4)
    for rank in range(16):
        demand_content(saved, part := saved.load(rank, 16, share(rank, 16)), share(rank, 16)(part))
        assert saved.ranks_read == {0, rank // 4} | ({rank} if rank < 4 else set())


@pytest.mark.parametrize(("world", "now"), [(16, 7), (16, 5), (13, 6), (40, 9)])
def test_rows_that_lie_with_others_than_the_numbers_say_are_found_by_how_the_first_ones_lie(
    folder_store: Store, world: int, now: int
) -> None:
    saved = Saved(folder_store, world)
    for rank in range(now):
        demand_content(saved, part := saved.load(rank, now, share(rank, now)), share(rank, now)(part))
        size, held = -(-ROWS // now), -(-ROWS // world)
        with_rows = {row // held for row in range(rank * size, min((rank + 1) * size, ROWS))}
        assert with_rows <= saved.ranks_read
        assert len(saved.ranks_read) <= len(with_rows) + 3 + -(-world // now)


def test_the_record_that_is_said_to_hold_a_tensor_is_read_next(folder_store: Store) -> None:
    saved = Saved(folder_store, 24, dealer=17)
    part = saved.load(3, 24, share(3, 24, likely=[17, 99, -1]))
    assert saved.ranks_read == {0, 3, 17}
    demand_content(saved, part, share(3, 24)(part))


@pytest.mark.parametrize("likely", [[], [2], [99]])
def test_where_nothing_true_is_known_of_a_tensor_all_records_are_read_in_turn(
    folder_store: Store, likely: list[int]
) -> None:
    saved = Saved(folder_store, 40, dealer=39)
    part = saved.load(1, 40, share(1, 40, likely))
    assert saved.ranks_read == set(range(40))
    assert len(saved.read) == 40
    demand_content(saved, part, share(1, 40)(part))


def test_by_default_all_that_a_rank_s_state_names_is_wanted_whole(folder_store: Store) -> None:
    saved = Saved(folder_store, 6, dealer=4)
    whole = load_manifest(folder_store, saved.record)
    part = saved.load(2, 6)
    assert {each.name for each in part.tensors} == {"a", "b", "short", "small", "dealt", "rank2/rng"}
    assert all(part.tensor(name).slices for name in saved.whole)
    demand_content(saved, part, Wanted(list(saved.whole)))
    assert part.state_of(2) == whole.state_of(2)
    assert "rank2/rng" not in {each.name for each in saved.load(9, 12).tensors}


def test_what_is_not_wanted_is_not_there(folder_store: Store) -> None:
    saved = Saved(folder_store, 4)
    part = saved.load(1, 4, lambda _: Wanted(["small"]))
    assert [each.name for each in part.tensors] == ["small"]


def test_of_one_rank_s_checkpoint_the_manifest_is_all(folder_store: Store) -> None:
    origin = Origin("host", 1)
    journal = Journal.create(folder_store)
    CheckpointWriter(journal, journal.claim(origin), origin).write(state_of(1, [tensor("w", b"123")]))
    record = journal.state.checkpoints[-1]
    assert load_manifest_part(folder_store, record, rank=3, world_size=8) == load_manifest(folder_store, record)


class TestDamage:
    def test_a_record_that_is_not_needed_does_not_matter(self, folder_store: Store) -> None:
        saved = Saved(folder_store, 16)
        folder_store.delete([saved.key(9)])
        flip_bit(folder_store, saved.key(10), 100)
        saved.load(4, 16, share(4, 16))
        with pytest.raises(DamagedError):
            load_manifest(folder_store, saved.record)

    def test_a_record_that_was_only_probable_does_not_matter_either(self, folder_store: Store) -> None:
        saved = Saved(folder_store, 16, dealer=3)
        folder_store.delete([saved.key(9)])
        part = saved.load(4, 16, share(4, 16, likely=[9]))
        assert {3, 9} <= saved.ranks_read
        demand_content(saved, part, share(4, 16)(part))

    @pytest.mark.parametrize("lost", [0, 4, 7])
    def test_one_that_is_needed_is_named(self, folder_store: Store, lost: int) -> None:
        saved = Saved(folder_store, 16, dealer=7)
        key = saved.key(lost)
        flip_bit(folder_store, key, 100)
        with pytest.raises(DamagedError, match=key) as caught:
            saved.load(4, 16, share(4, 16, likely=[7]))
        assert caught.value.kind == "sha256"

    def test_a_store_that_fails_is_no_damage(self, folder_store: Store) -> None:
        saved = Saved(folder_store, 4)
        faulty = FaultyStore(folder_store, fail_call=3, methods=["get"])
        with pytest.raises(StoreError) as caught:
            load_manifest_part(faulty, saved.record, rank=1, world_size=4)
        assert not isinstance(caught.value, DamagedError)


Change = Callable[[dict[str, Any]], None]


def commit_changed(saved: Saved, rank: int, change: Change) -> None:
    """Commit the checkpoint again with another record of one rank, as a program that is not ours might."""
    store, journal = saved.gang.store, saved.gang.journal
    head = json.loads(store.get(saved.record.event.manifest))
    document = json.loads(store.get(head["ranks"][rank]["key"]))
    change(document)
    head["ranks"][rank] = {
        "key": f"ranks/1/1/{rank}-ffffffff.json",
        "sha256": put(store, f"ranks/1/1/{rank}-ffffffff.json", document),
    }
    key = "manifests/00000000001-1-ffffffff.json"
    event = msgspec.structs.replace(saved.record.event, step=2, manifest=key, sha256=put(store, key, head))
    journal.append(event, saved.gang.origin, saved.gang.lease)


def put(store: Store, key: str, document: Any) -> str:
    data = json.dumps(document).encode()
    store.put(key, [data])
    return sha256(data)


def tensor_in(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in document["tensors"] if each["name"] == name)
    return found


def moved(rows: int) -> Change:
    def change(document: dict[str, Any]) -> None:
        tensor_in(document, "a")["slices"][0]["offset"][0] += rows

    return change


def of_shape(*shape: int) -> Change:
    def change(document: dict[str, Any]) -> None:
        tensor_in(document, "a")["shape"] = list(shape)

    return change


def flat(document: dict[str, Any]) -> None:
    piece = tensor_in(document, "a")["slices"][0]
    piece["offset"], piece["shape"] = [0], [24]


def twice(document: dict[str, Any]) -> None:
    document["tensors"].append(tensor_in(document, "a"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (moved(-1), "a at .*in common"),
        (moved(1000), "a on rank 1 is outside"),
        (moved(-1000), "a on rank 1 is outside"),
        (of_shape(ROWS + 1, WIDTH), "a is a float32 of shape .49, 2. on rank 1, and a float32 of shape .48, 2."),
        (flat, "a on rank 1 is outside"),
        (twice, "in common"),
        (lambda document: document.update(rank=2), "where rank 1 of 4 belongs"),
        (lambda document: tensor_in(document, "a").update(slices=[]), "the slices of a .* leave elements out"),
        (lambda document: document.update(tensors=[]), "rank1/rng, which is in no pack"),
    ],
    ids=["overlap", "after", "before", "shape", "dimensions", "twice", "rank", "hole", "nothing"],
)  # fmt: skip
def test_records_that_contradict_each_other_are_damage_where_they_are_needed(
    folder_store: Store, change: Change, named: str
) -> None:
    saved = Saved(folder_store, 4)
    commit_changed(saved, 1, change)
    with pytest.raises(DamagedError, match=named):
        saved.load(1, 4)


def test_the_part_that_a_rank_wrote_tells_whether_the_checkpoint_holds_its_state(folder_store: Store) -> None:
    gang = Gang(folder_store, 3)
    held = [[part] for part in sharded("a", 3)]
    states = gang.states(1, held)
    gang.save(1, held)
    record = gang.journal.state.checkpoints[-1]
    parts = [load_rank_part(folder_store, record, rank) for rank in range(3)]
    assert [[holds_state(part, state) for state in states] for part in parts] == [
        [part == state for state in range(3)] for part in range(3)
    ]


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, int], list[tuple[tuple[int, int], tuple[int, int]]], list[int]]:
    """A matrix, the boxes into which cuts along both sides part it, and the rank that has each."""
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    cuts = [[0, *sorted(draw(st.sets(st.integers(1, max(1, n - 1)), max_size=2))), n] for n in shape]
    spans = [[(a, b - a) for a, b in itertools.pairwise(sorted(set(each))) if b > a] for each in cuts]
    boxes = [((r[0], c[0]), (r[1], c[1])) for r in spans[0] for c in spans[1]]
    ranks = draw(st.permutations(range(len(boxes))))
    return shape, boxes, ranks


@settings(max_examples=40)
@given(grids(), st.data())
def test_whatever_the_layout_the_boxes_that_are_wanted_are_covered(
    tmp_path_factory: pytest.TempPathFactory, grid: Any, data: st.DataObject
) -> None:
    shape, boxes, ranks = grid
    whole = tensor_of("a", "uint8", shape)
    store = open_store(str(tmp_path_factory.mktemp("grid") / "run"), create=True)
    gang = Gang(store, len(boxes) + 1)
    held: list[list[HostTensor]] = [[] for _ in range(len(boxes) + 1)]
    for (offset, lengths), rank in zip(boxes, ranks, strict=True):
        held[rank].append(box_of(whole, offset, lengths))
    gang.save(1, held)
    begin = [data.draw(st.integers(0, length)) for length in shape]
    lengths = [data.draw(st.integers(0, length - start)) for start, length in zip(begin, shape, strict=True)]
    box = Box(tuple(begin), tuple(lengths))
    now = data.draw(st.integers(1, 30))
    part = load_manifest_part(
        store, gang.journal.state.checkpoints[-1], rank=data.draw(st.integers(0, now - 1)), world_size=now,
        wanted=lambda _: Wanted(["a"], lambda _: [box], lambda _: data.draw(st.lists(st.integers(-2, 30), max_size=3))),
    )  # fmt: skip
    memory = memoryview(bytearray(box.size))
    read_pieces(store, part, [Piece("a", box, memory)] if box.size else [])
    assert bytes(memory) == (cut_out(whole, (box.offset, box.shape)) if box.size else b"")
