"""What one rank of several makes durable: its boxes, its record, and nothing that did not change."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoint.conftest import Attempt, WatchedStore, restore, tensor, tensor_of
from tests.checkpoint.ranks import Gang, box_of, cut_out, rank_state, reassembled, rows, truth

from unbroken.checkpoint import (
    HostTensor,
    RankWriter,
    find_rank_records,
    load_manifest,
    load_rank_part,
    read_metrics,
)
from unbroken.checkpoint.dtypes import KNOWN
from unbroken.checkpoint.manifest import RankRecord
from unbroken.checkpoint.safetensors import decode_header
from unbroken.errors import ConfigError, StoreError
from unbroken.store import Store, open_store


def objects(store: Store, prefix: str) -> set[str]:
    return {info.key for info in store.list(prefix)}


@st.composite
def sharded(draw: st.DrawFn, name: str, world_size: int) -> tuple[HostTensor, list[tuple[int, HostTensor]]]:
    """A tensor of any type and shape, and who has which box of it: whole on one rank, or cut along any dimensions."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    whole = tensor_of(name, draw(st.sampled_from(sorted(KNOWN))), shape, draw(st.integers(0, 255)))
    if not shape or draw(st.booleans()):
        return whole, [(draw(st.integers(0, world_size - 1)), whole)]
    parts = [1] * len(shape)
    for d in draw(st.permutations(range(len(shape)))):
        parts[d] = draw(st.integers(1, world_size // math.prod(parts)))  # at most one box a rank
    spans = []  # uneven, and some of no elements
    for length, count in zip(shape, parts, strict=True):
        cuts = draw(st.lists(st.integers(0, length), min_size=count - 1, max_size=count - 1))
        spans.append(list(itertools.pairwise([0, *sorted(cuts), length])))
    owners = draw(st.permutations(range(world_size)))
    return whole, [
        (rank, box_of(whole, [begin for begin, _ in box], [end - begin for begin, end in box]))
        for rank, box in zip(owners, itertools.product(*spans), strict=False)
    ]


@st.composite
def gangs(draw: st.DrawFn) -> tuple[list[HostTensor], list[list[HostTensor]], list[int]]:
    """Tensors, what of them each rank has, and the order in which ranks are done."""
    world_size = draw(st.integers(1, 5))
    held: list[list[HostTensor]] = [[] for _ in range(world_size)]
    wholes = []
    for number in range(draw(st.integers(0, 5))):
        whole, parts = draw(sharded(f"t{number}", world_size))
        wholes.append(whole)
        for rank, part in parts:
            held[rank].append(part)
    return wholes, held, draw(st.permutations(range(world_size)))


@settings(deadline=None, max_examples=60)
@given(gangs(), st.integers(0, 31))
def test_what_many_ranks_wrote_is_the_state_that_was_cut_up(
    gang: tuple[list[HostTensor], list[list[HostTensor]], list[int]], known_mask: int
) -> None:
    wholes, held, order = gang
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"{folder}/run", create=True)
        ranks = Gang(store, len(held))
        states = ranks.states(7, held)
        durable = {rank: ranks.writers[rank].write(states[rank]) for rank in order}
        known = {rank: each for rank, each in durable.items() if known_mask >> rank & 1}
        found = find_rank_records(store, 1, 7, len(held), known)
        assert found == durable
        event = ranks.commit(found)
        manifest = load_manifest(store, ranks.journal.state.checkpoints[-1])
        own = [tensor(f"rank{rank}/rng", bytes([rank, 7])) for rank in range(len(held))]
        assert reassembled(store, manifest) == truth([*wholes, *own])
        assert event.size == manifest.size == sum(len(each.data) for each in [*wholes, *own])
        assert [manifest.state_of(rank)["rng"]["$tensor"] for rank in range(len(held))] == [t.name for t in own]


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_packs_hold_each_rank_s_own_boxes_and_any_tool_reads_them(folder_store: Store, world_size: int) -> None:
    whole = tensor_of("w", "float32", (world_size * 2 + 1, 3))
    gang = Gang(folder_store, world_size)
    parts = rows(whole, *[2] * (world_size - 1), 3)
    durable = gang.write(4, [[part] for part in parts])
    for rank, part in enumerate(parts):
        (pack,) = durable[rank].record.packs
        assert pack.key.startswith(f"packs/1/4-{rank}-0-")
        header = decode_header(memoryview(folder_store.get(pack.key)), pack.key)
        assert {entry.name: entry.shape for entry in header.entries} == {"w": list(part.shape), f"rank{rank}/rng": [2]}
        (held,) = [each for each in durable[rank].record.tensors if each.name == "w"]
        assert (held.shape, held.slices[0].offset, held.slices[0].shape) == (
            [*whole.shape],
            [rank * 2, 0],
            [*part.shape],
        )


def test_the_record_comes_after_all_that_it_lists_and_is_what_was_given_back(folder_store: Store) -> None:
    watched = WatchedStore(folder_store)
    gang = Gang(watched, 2)
    puts: list[str] = []
    watched.before = lambda method, key: puts.append(key) if method == "put" else None
    done = gang.writers[0].write(gang.states(3, [[tensor("w", b"12")], []], {"loss": [(3, 0.5)]})[0])
    assert [key.split("/")[0] for key in puts] in (["metrics", "packs", "ranks"], ["packs", "metrics", "ranks"])
    assert puts[-1] == done.ref.key == f"ranks/1/3/0-{done.record.nonce}.json"
    assert msgspec.json.decode(folder_store.get(done.ref.key), type=RankRecord) == done.record
    assert done.record.written == sum(info.size for info in folder_store.list("packs")) + len(
        folder_store.get(done.record.metrics)
    )
    assert objects(folder_store, "manifests") == set()
    assert [entry.event.__struct_config__.tag for entry in gang.journal.entries] == ["attempt-claimed"]


def test_only_rank_0_writes_the_shared_tree_the_parent_and_logged_values(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    gang.save(1, [[], []], {"loss": [(1, 1.0)]})
    gang.save(2, [[], []], {"loss": [(1, 1.0), (2, 2.0)]})
    first, second = gang.journal.state.commits
    zero, one = (load_manifest(folder_store, second).ranks[rank] for rank in range(2))
    records = [json.loads(folder_store.get(ref.key)) for ref in (zero, one)]
    assert records[0]["parent"] == second.event.parent == first.event.manifest
    assert records[0]["metrics"] == second.event.metrics
    assert records[0]["state"] == load_manifest(folder_store, second).state
    assert not {"parent", "metrics", "state"} & records[1].keys()
    assert read_metrics(folder_store, gang.journal.state, second) == {"loss": [(1, 1.0), (2, 2.0)]}


def test_unchanged_boxes_are_referred_to_and_not_written_again(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    frozen, moving = tensor_of("frozen", "float32", (40, 3)), tensor_of("w", "int16", (4, 2), 1)
    moved = tensor_of("w", "int16", (4, 2), 2)

    def held(w: HostTensor) -> list[list[HostTensor]]:
        return [list(each) for each in zip(rows(frozen, 30, 10), rows(w, 2, 2), strict=True)]

    gang.save(1, held(moving))
    packs = objects(folder_store, "packs")
    durable = gang.write(2, held(moved))
    for rank, fresh in durable.items():
        (pack,) = {pack.key for pack in fresh.record.packs} - packs
        assert b"frozen" not in folder_store.get(pack)
        assert fresh.record.refers_to == gang.journal.state.checkpoints[-1].event.manifest
        assert f"packs/1/1-{rank}-0" in fresh.record.packs[0].key
    gang.commit(durable)
    found = reassembled(folder_store, load_manifest(folder_store, gang.journal.state.checkpoints[-1]))
    assert found["frozen"] == truth([frozen])["frozen"]
    assert found["w"] == truth([moved])["w"]


@pytest.mark.parametrize("change", ["another cut", "another dtype", "another shape"])
def test_a_box_is_not_taken_for_another_that_has_the_same_bytes(folder_store: Store, change: str) -> None:
    gang = Gang(folder_store, 2)
    zeros = tensor("w", bytes(64), "int32", (4, 4))
    gang.save(1, [[part] for part in rows(zeros, 2, 2)])
    other = {
        "another cut": [box_of(zeros, (0, 0), (4, 2)), box_of(zeros, (0, 2), (4, 2))],
        "another dtype": rows(tensor("w", bytes(64), "float32", (4, 4)), 2, 2),
        "another shape": rows(tensor("w", bytes(64), "int32", (8, 2)), 4, 4),
    }[change]
    durable = gang.write(1 + 1, [[part] for part in other])
    assert all(not each.record.refers_to for each in durable.values())


def test_after_a_restore_into_the_same_layout_frozen_boxes_stay_where_they_are(folder_store: Store) -> None:
    frozen = tensor_of("frozen", "uint8", (10, 10))
    first = Gang(folder_store, 2)
    first.save(1, [[part] for part in rows(frozen, 6, 4)])
    again = Gang(folder_store, 2)
    record = again.journal.state.checkpoints[-1]
    again.writers[0].continue_from(record, load_manifest(folder_store, record))
    again.writers[1].continue_from(record, load_rank_part(folder_store, record, 1))
    durable = again.write(2, [[part] for part in rows(frozen, 6, 4)])
    assert [each.record.refers_to for each in durable.values()] == [record.event.manifest] * 2


def test_one_rank_goes_on_from_many_and_many_from_one(folder_store: Store) -> None:
    frozen, own = tensor("frozen", b"f" * 500), tensor_of("w", "uint8", (6, 2))
    Gang(folder_store, 2).save(1, [[frozen, rows(own, 3, 3)[0]], [rows(own, 3, 3)[1]]])
    alone = Attempt(folder_store)
    record = alone.journal.state.checkpoints[-1]
    alone.writer.continue_from(record, load_manifest(folder_store, record))
    alone.save(2, {"frozen": b"f" * 500, "w": bytes(own.data)})
    found = restore(folder_store)
    assert found is not None
    assert (found.manifest.format, found.content) == (1, {"frozen": b"f" * 500, "w": bytes(own.data)})
    assert any(pack.key.startswith("packs/1/1-0-") for pack in found.manifest.packs)
    gang = Gang(folder_store, 2)
    gang.go_on()
    assert gang.write(3, [[frozen], []])[0].record.refers_to == found.record.event.manifest


def test_a_rank_beyond_those_of_the_parent_has_nothing_to_refer_to(folder_store: Store) -> None:
    Gang(folder_store, 2).save(1, [[tensor("w", b"1")], []])
    record = Gang(folder_store, 3).journal.state.checkpoints[-1]
    part = load_rank_part(folder_store, record, 2)
    assert (part.tensors, part.packs, part.step) == ([], [], 1)


def test_a_box_without_elements_is_not_written_and_an_empty_tensor_is(folder_store: Store) -> None:
    whole, empty = tensor("w", b"123"), tensor("e", b"", "float32", (0, 4))
    gang = Gang(folder_store, 2)
    durable = gang.write(1, [[*rows(whole, 3), empty], [box_of(whole, (3,), (0,))]])
    assert [each.name for each in durable[1].record.tensors] == ["rank1/rng"]
    gang.commit(durable)
    found = reassembled(folder_store, load_manifest(folder_store, gang.journal.state.checkpoints[-1]))
    assert (found["w"][2], found["e"]) == (b"123", ("float32", (0, 4), b""))


def box(shape: Sequence[int], offset: Sequence[int], whole: Sequence[int], name: str = "w") -> HostTensor:
    size = max(0, shape[0]) if shape else 1
    return HostTensor(name, "uint8", tuple(shape), memoryview(bytes(size)), tuple(offset), tuple(whole))


@pytest.mark.parametrize(
    ("held", "kind"),
    [
        (box([2], [3], [4]), "tensor-box"),
        (box([2], [-1], [4]), "tensor-box"),
        (box([2], [0, 0], [4]), "tensor-box"),
        (box([2], [0], [4, 4]), "tensor-box"),
        (box([2], [0], [4], "rank1/rng"), "tensor-name"),
    ],
)
def test_a_state_that_could_not_be_read_again_is_refused_before_anything_is_written(
    folder_store: Store, held: HostTensor, kind: str
) -> None:
    gang = Gang(folder_store, 2)
    with pytest.raises(ConfigError) as caught:
        gang.writers[1].write(gang.states(1, [[], [held]])[1])
    assert caught.value.kind == kind
    assert objects(folder_store, "packs") | objects(folder_store, "ranks") == set()


def test_what_is_a_rank_s_own_must_be_named_so_and_be_there(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    sound = gang.states(1, [[], []])[1]
    wrong = [
        (replace(sound, local={"rng": {"$tensor": "rank0/rng"}}), "which was not passed"),
        (replace(sound, local={"rng": {"$tensor": "w"}}, tensors=[tensor("w", b"1")]), "rank 1's own"),
        (replace(sound, local={"model": 1}), "'model' is both shared and rank 1's own"),
        (replace(sound, tree=[]), "no dictionary"),
    ]
    for state, text in wrong:
        with pytest.raises(ConfigError, match=text):
            gang.writers[1].write(state)


def test_a_writer_takes_no_other_rank_s_state_and_one_rank_s_writer_none_of_many(folder_store: Store) -> None:
    gang = Gang(folder_store, 2)
    states = gang.states(1, [[], []])
    with pytest.raises(ValueError, match="rank 1 of 2, not 0"):
        gang.writers[0].write(states[1])
    with pytest.raises(ConfigError, match="rank 1 of 2"):
        Attempt(folder_store).writer.write(states[1])
    with pytest.raises(ConfigError, match="w is not whole"):
        Gang(folder_store, 1).write(1, [[box([2], [0], [4])]])
    with pytest.raises(ValueError, match="rank 2 of 2"):
        RankWriter(gang.journal, gang.lease, gang.origin, rank=2, world_size=2)


def test_a_write_that_fails_anywhere_names_nothing_and_may_be_made_again(folder_store: Store) -> None:
    whole = tensor_of("w", "uint8", (8, 2))
    for number in itertools.count(1):
        gang = Gang(folder_store, 2)
        states = gang.states(number, [[part] for part in rows(whole, 4, 4)])
        puts = itertools.count(1)
        broken = False

        def stop(_: int) -> None:
            nonlocal broken
            if next(puts) == number:  # noqa: B023 - used in this turn only
                broken = True
                raise StoreError("broken", kind="test")

        try:
            gang.writers[0].write(states[0], on_piece=stop)
        except StoreError:
            assert find_rank_records(folder_store, gang.lease.attempt, number, 2, {}) == {}
        durable = {rank: writer.write(states[rank]) for rank, writer in enumerate(gang.writers)}
        gang.commit(durable)
        found = load_manifest(folder_store, gang.journal.state.checkpoints[-1])
        assert reassembled(folder_store, found)["w"] == truth([whole])["w"]
        if not broken:
            assert number > 2
            return


def test_bytes_of_a_box_are_those_of_its_elements() -> None:
    whole = tensor("w", bytes(range(12)), "uint8", (3, 4))
    assert cut_out(whole, ((1, 1), (2, 2))) == bytes([5, 6, 9, 10])
    assert rank_state(1, 0, 1, [], []).local == {"rng": {"$tensor": "rank0/rng"}}
