"""Every byte of a checkpoint is covered: a flipped bit anywhere is found, and a restore goes past it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.checkpoint.conftest import Attempt, restore, tensor_of
from tests.checkpoint.ranks import Gang, rows

from unbroken.checkpoint import Manifest, load_manifest, verify_checkpoint
from unbroken.errors import DamagedError, StoreError
from unbroken.journal import CheckpointRecord, Journal
from unbroken.store import Store
from unbroken.testing import FaultyStore, flip_bit, truncate

NEW = {"frozen": b"f" * 300, "w": b"n" * 200, "bias": b"b", "empty": b""}


@dataclass(frozen=True)
class Saved:
    """A run with two checkpoints that share a pack."""

    record: CheckpointRecord
    manifest: Manifest

    def pack_of(self, name: str) -> tuple[str, int, int]:
        """(key, first byte, length) of a tensor."""
        (piece,) = self.manifest.tensor(name).slices
        return self.manifest.packs[piece.pack].key, piece.start, piece.length


@pytest.fixture
def saved(store: Store, small_chunks: int) -> Saved:
    attempt = Attempt(store)
    attempt.save(1, {**NEW, "w": b"o" * 200}, {"loss": [(1, 0.5)]})
    attempt.save(2, NEW, {"loss": [(2, 0.25)]})
    record = attempt.journal.state.checkpoints[-1]
    return Saved(record, load_manifest(store, record))


def problems(store: Store, saved: Saved) -> list[str]:
    return verify_checkpoint(store, saved.record).problems


def test_a_sound_checkpoint_is_read_whole_and_has_no_problem(store: Store, saved: Saved) -> None:
    report = verify_checkpoint(store, saved.record)
    headers = sum(pack.header_size for pack in saved.manifest.packs)
    assert (report.step, report.tensors, report.problems) == (2, 4, [])
    assert report.bytes == headers + sum(len(data) for data in NEW.values())


def spots(saved: Saved) -> Iterator[tuple[str, int, str, str]]:
    """(key, byte, what verify names, what a restore does) of a byte in every class of bytes."""
    for pack in saved.manifest.packs:
        shared = "/1-0-" in pack.key
        for at in (0, 7, 8, pack.header_size // 2, pack.header_size - 1):
            yield pack.key, at, f"the header in {pack.key}", "loads"  # a restore has no need of the header
        assert shared or pack.size - pack.header_size == 200
    for name, data in NEW.items():
        key, start, length = saved.pack_of(name)
        assert length == len(data)
        for at in sorted({0, 63, 64, length // 2, length - 1}):
            if 0 <= at < length:
                yield key, start + at, f"{name} in {key}", "passes over" if name == "w" else "fails"
    manifest = saved.record.event.manifest
    for at in (0, 10, 500, -2, -1):
        yield manifest, at, manifest, "passes over"
    for at in (0, 30, -1):
        yield saved.record.event.metrics, at, saved.record.event.metrics, "loads"
        yield saved.manifest.ranks[0].key, at, saved.manifest.ranks[0].key, "loads"


def test_a_flipped_bit_anywhere_is_found_named_and_never_loaded(store: Store, saved: Saved) -> None:
    for number, (key, at, named, outcome) in enumerate(spots(saved)):
        flip_bit(store, key, at, bit=number % 8)
        (problem,) = problems(store, saved)
        assert named in problem
        check_restore(store, outcome)
        flip_bit(store, key, at, bit=number % 8)
    assert problems(store, saved) == []


def check_restore(store: Store, outcome: str) -> None:
    """What a restore does with damage in the newer of the two: load what is sound, pass over, or give up."""
    if outcome == "fails":  # the bytes belong to both checkpoints
        with pytest.raises(DamagedError) as caught:
            restore(store)
        assert caught.value.kind == "all-damaged"
        return
    found = restore(store)
    assert found is not None
    if outcome == "loads":
        assert (found.step, found.content, found.passed_over) == (2, NEW, [])
    else:
        assert (found.step, found.content["w"]) == (1, b"o" * 200)
        assert [step for step, _ in found.passed_over] == [2]


@pytest.mark.parametrize("left", ["nothing", "part of the header", "the header", "all but a byte"])
def test_a_truncated_pack_is_found_and_never_loaded(store: Store, saved: Saved, left: str) -> None:
    key, start, length = saved.pack_of("w")
    truncate(store, key, {"nothing": 0, "part of the header": 9, "the header": start}.get(left, start + length - 1))
    found = problems(store, saved)
    assert found
    assert all(key in problem for problem in found)
    assert any("w" in problem.partition("it holds")[2] for problem in found)
    check_restore(store, "passes over")


def test_a_missing_pack_is_reported_once_with_all_that_it_holds(store: Store, saved: Saved) -> None:
    key, _, _ = saved.pack_of("frozen")
    store.delete([key])
    (problem,) = problems(store, saved)
    assert key in problem
    assert "frozen" in problem
    assert "bias" in problem


@pytest.mark.parametrize("damage", ["missing", "truncated", "exchanged"])
def test_a_manifest_that_is_not_the_committed_one_is_found_and_never_loaded(
    store: Store, saved: Saved, damage: str
) -> None:
    key = saved.record.event.manifest
    other = Journal.open(store).state.checkpoints[0].event.manifest
    if damage == "missing":
        store.delete([key])
    elif damage == "truncated":
        truncate(store, key, 100)
    else:
        store.put(key, [store.get(other)])
    (problem,) = problems(store, saved)
    assert key in problem
    check_restore(store, "passes over")


def test_two_packs_exchanged_for_each_other_are_found(store: Store, saved: Saved) -> None:
    one, other = (pack.key for pack in saved.manifest.packs)
    first, second = store.get(one), store.get(other)
    store.put(one, [second])
    store.put(other, [first])
    assert problems(store, saved)
    check_restore(store, "fails")


def test_all_damage_is_listed_and_not_only_the_first(store: Store, saved: Saved) -> None:
    for name in ("w", "frozen", "bias"):
        key, start, _ = saved.pack_of(name)
        flip_bit(store, key, start)
    store.delete([saved.record.event.metrics, saved.manifest.ranks[0].key])
    found = problems(store, saved)
    assert len(found) == 5
    for named in ("w in ", "frozen in ", "bias in ", saved.record.event.metrics, saved.manifest.ranks[0].key):
        assert any(named in problem for problem in found)


@pytest.mark.parametrize("call", range(1, 8))
def test_a_failing_store_proves_nothing_about_a_checkpoint(store: Store, saved: Saved, call: int) -> None:
    with pytest.raises(StoreError):
        verify_checkpoint(FaultyStore(store, fail_call=call), saved.record)


class TestRanks:
    @pytest.fixture
    def record(self, store: Store, small_chunks: int) -> CheckpointRecord:
        """Of three ranks, each with some rows of a matrix, and with a generator of its own."""
        gang = Gang(store, 3)
        gang.save(1, [[part] for part in rows(tensor_of("w", "float32", (20, 4)), 3, 10, 7)], {"loss": [(1, 0.5)]})
        return gang.journal.state.checkpoints[-1]

    def test_every_ranks_bytes_are_read(self, store: Store, record: CheckpointRecord) -> None:
        report = verify_checkpoint(store, record)
        assert (report.problems, report.tensors) == ([], 4)
        assert report.bytes == sum(info.size for info in store.list("packs"))

    def test_a_flipped_bit_in_any_ranks_part_is_found_and_named(self, store: Store, record: CheckpointRecord) -> None:
        manifest = load_manifest(store, record)
        spots = [(record.event.manifest, 100, record.event.manifest), (record.event.metrics, 3, record.event.metrics)]
        spots += [(ref.key, at, ref.key) for ref in manifest.ranks for at in (0, 60, -1)]
        spots += [(pack.key, at, f"the header in {pack.key}") for pack in manifest.packs for at in (0, 20)]
        for each in manifest.tensors:
            for piece in each.slices:
                key = manifest.packs[piece.pack].key
                spots += [(key, piece.start + at, f"{each.name} in {key}") for at in (0, piece.length - 1)]
        assert len(spots) == 2 + 3 * 3 + 3 * 2 + 6 * 2
        for number, (key, at, named) in enumerate(spots):
            flip_bit(store, key, at, bit=number % 8)
            (problem,) = verify_checkpoint(store, record).problems
            assert named in problem
            flip_bit(store, key, at, bit=number % 8)

    def test_damage_of_several_ranks_is_listed_whole(self, store: Store, record: CheckpointRecord) -> None:
        manifest = load_manifest(store, record)
        store.delete([manifest.packs[0].key])
        truncate(store, manifest.packs[1].key, 8)
        found = verify_checkpoint(store, record).problems
        assert all(any(pack.key in problem for problem in found) for pack in manifest.packs[:2])
        assert not any(manifest.packs[2].key in problem for problem in found)
