"""Writing checkpoints: what is written, what is only referred to, and in which order."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import partial

import msgspec
import pytest
from tests.checkpoint.conftest import Attempt, Content, WatchedStore, restore, state_of, tensor, tensor_of

from unbroken.checkpoint import encode_tree, load_manifest, verify_checkpoint
from unbroken.checkpoint.digest import digest, sha256
from unbroken.checkpoint.dtypes import KNOWN
from unbroken.checkpoint.manifest import RankRecord
from unbroken.checkpoint.packs import plan_packs
from unbroken.checkpoint.staged import HostState
from unbroken.errors import StoreError
from unbroken.journal import Journal
from unbroken.store import Store
from unbroken.store.store import Buffer, OnPiece
from unbroken.testing import FaultyStore

MiB = 1 << 20


def names(store: Store, prefix: str) -> set[str]:
    return {info.key for info in store.list(prefix)}


def stored(store: Store) -> int:
    """Bytes of all objects outside the journal."""
    return sum(info.size for info in store.list("") if not info.key.startswith(("journal/", "run.json")))


def test_a_state_comes_back_bit_for_bit(store: Store) -> None:
    tensors = [tensor_of(f"t/{dtype}", dtype, (3, 2), seed) for seed, dtype in enumerate(sorted(KNOWN))]
    tensors += [tensor_of("scalar", "float32", ()), tensor_of("empty", "int64", (0, 4)), tensor_of("one", "bool", (1,))]
    Attempt(store).writer.write(state_of(7, tensors))
    found = restore(store)
    assert found is not None
    assert found.content == {each.name: bytes(each.data) for each in tensors}
    assert [(each.name, each.dtype, tuple(each.shape)) for each in found.manifest.tensors] == [
        (each.name, each.dtype, each.shape) for each in tensors
    ]
    assert (found.step, found.tree["step"]) == (7, 7)


def test_a_state_without_any_tensor_is_a_checkpoint_too(store: Store) -> None:
    Attempt(store).writer.write(HostState(3, encode_tree({"note": ("x", 1)}), []))
    found = restore(store)
    assert found is not None
    assert (found.tree, found.content, found.manifest.packs) == ({"note": ("x", 1)}, {}, [])
    assert names(store, "packs") == set()


def test_the_bytes_written_are_those_that_are_counted(store: Store) -> None:
    attempt = Attempt(store)
    before = stored(store)
    for step, content in enumerate([{"a": b"1" * 100}, {"a": b"1" * 100}, {"a": b"2", "b": b"3" * 50}], start=1):
        event = attempt.save(step, content, {"loss": [(step, 0.5)]})
        assert event.size == sum(len(data) for data in content.values())
        assert event.written == stored(store) - before
        before = stored(store)


def test_an_unchanged_tensor_is_referred_to_and_not_written_again(store: Store) -> None:
    attempt = Attempt(store)
    attempt.save(1, {"frozen": b"f" * 5000, "w": b"a" * 10})
    packs = names(store, "packs")
    event = attempt.save(2, {"frozen": b"f" * 5000, "w": b"b" * 10})
    (fresh,) = names(store, "packs") - packs
    assert len(store.get(fresh)) < 500
    assert event.written < 5000
    found = restore(store)
    assert found is not None
    assert found.content == {"frozen": b"f" * 5000, "w": b"b" * 10}


def test_with_nine_tenths_frozen_the_changed_bytes_and_at_most_a_hundredth_more_are_written(store: Store) -> None:
    attempt = Attempt(store)
    frozen = {f"frozen/{number}": bytes([number]) * MiB for number in range(27)}
    trained = {"w": 2 * MiB, "m": 500_000, "v": 500_000, "step": 4}
    attempt.save(1, frozen | {name: b"a" * size for name, size in trained.items()})
    before = stored(store)
    event = attempt.save(2, frozen | {name: b"b" * size for name, size in trained.items()})
    changed = sum(trained.values())
    assert changed < 0.1 * event.size
    assert event.written == stored(store) - before
    assert changed < event.written <= 1.01 * changed


def test_no_chunk_is_digested_twice(folder_store: Store, small_chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = Attempt(folder_store)
    content = {"frozen": b"f" * 300, "w": b"a" * 300, "end": b"x" * 300}
    attempt.save(1, content)
    seen: list[int] = []
    monkeypatch.setattr("unbroken.checkpoint.digest.digest", lambda data: (seen.append(len(data)), digest(data))[1])
    attempt.save(2, content | {"w": b"b" * 300, "end": b"x" * 299 + b"y", "new": b"n" * 300})
    assert sorted(seen) == sorted(4 * [*(4 * [small_chunks]), 300 - 4 * small_chunks])
    found = restore(folder_store)
    assert found is not None
    assert found.content["end"] == b"x" * 299 + b"y"


def test_a_pack_is_on_its_way_before_later_tensors_are_looked_at(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbroken.checkpoint.packing.plan_packs", partial(plan_packs, pack_size=100))
    begun = threading.Event()
    late: list[bytes] = []

    def slow_digest(data: bytes) -> str:
        if bytes(data[:1]) == b"z":
            assert begun.wait(60)
            late.append(bytes(data))
        return digest(data)

    def before(method: str, key: str) -> None:
        if key.startswith("packs/"):
            begun.set()

    attempt = Attempt(WatchedStore(folder_store, before))
    content = {"a": b"a" * 80, "b": b"b" * 80, "z": b"z" * 80}
    attempt.save(1, content)
    begun.clear()
    monkeypatch.setattr("unbroken.checkpoint.digest.digest", slow_digest)
    attempt.save(2, {"a": b"1" * 80, "b": b"2" * 80, "z": b"z" * 79 + b"3"})
    assert late == [b"z" * 79 + b"3"]
    found = restore(folder_store)
    assert found is not None
    assert found.content == {"a": b"1" * 80, "b": b"2" * 80, "z": b"z" * 79 + b"3"}


def test_every_byte_that_is_written_is_announced(store: Store) -> None:
    told: list[int] = []
    attempt = Attempt(store)
    for step, size in enumerate([100, 40 * MiB], start=1):
        told.clear()
        tensors = [tensor_of("small", "uint8", (7,)), tensor("w", bytes(size)), tensor("v", b"v" * 100)]
        event = attempt.writer.write(state_of(step, tensors, {"loss": [(step, 1.0)]}), on_piece=told.append)
        assert sum(told) == event.written
        assert max(told) <= 16 * MiB


class StopError(Exception):
    """What a listener raises."""


class Stop:
    """A listener that raises at a piece, counted from 1."""

    def __init__(self, piece: int) -> None:
        self.error = StopError(piece)
        self._left = piece

    def __call__(self, _: int) -> None:
        self._left -= 1
        if self._left == 0:
            raise self.error


def test_a_write_that_is_stopped_anywhere_changes_nothing_and_the_next_one_succeeds(folder_store: Store) -> None:
    attempt = Attempt(folder_store)
    first = attempt.save(1, {"w": b"a" * 100})
    large = state_of(2, [tensor("w", b"b" * 100), tensor("large", bytes(17 * MiB))], {"loss": [(2, 1.0)]})
    pieces: list[int] = []
    attempt.writer.write(large, on_piece=pieces.append)
    again = Attempt(folder_store)
    before = attempt.journal.state.checkpoints[0]
    again.writer.continue_from(before, load_manifest(folder_store, before))
    for piece in range(1, len(pieces) + 1):
        with pytest.raises(StopError) as caught:
            again.writer.write(large, on_piece=(stop := Stop(piece)))
        assert caught.value is stop.error
        assert len(Journal.open(folder_store).state.commits) == 2
    assert again.writer.write(large).parent == first.manifest
    found = restore(folder_store)
    assert found is not None
    assert (found.manifest.attempt, found.content["w"], len(found.content["large"])) == (2, b"b" * 100, 17 * MiB)
    assert found.passed_over == []


def test_a_wholly_unchanged_state_writes_no_pack(store: Store) -> None:
    attempt = Attempt(store)
    attempt.save(1, {"w": b"a" * 10})
    packs = names(store, "packs")
    attempt.save(2, {"w": b"a" * 10})
    assert names(store, "packs") == packs
    found = restore(store)
    assert found is not None
    assert (found.step, found.content) == (2, {"w": b"a" * 10})


def test_a_tensor_that_is_frozen_and_thawed_is_right_at_every_step(store: Store) -> None:
    attempt = Attempt(store)
    states: list[Content] = [
        {"a": b"1", "b": b"1"}, {"a": b"1", "b": b"2"}, {"a": b"1", "b": b"3"}, {"a": b"2", "b": b"3"},
        {"a": b"1", "b": b"3"}, {"b": b"3"}, {"b": b"3", "a": b"1"}, {"a": b"", "b": b"3"},
    ]  # fmt: skip
    for step, content in enumerate(states, start=1):
        attempt.save(step, content)
        found = restore(store)
        assert found is not None
        assert list(found.content.items()) == list(content.items())
    for record in attempt.journal.state.checkpoints:
        assert verify_checkpoint(store, record).problems == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (tensor_of("w", "float32", (4,)), tensor_of("w", "int32", (4,))),
        (tensor_of("w", "float32", (4,)), tensor_of("w", "float32", (2, 2))),
        (tensor_of("w", "float32", (4,)), tensor_of("v", "float32", (4,))),
        (tensor_of("w", "float32", (0, 4)), tensor_of("w", "float32", (4, 0))),
    ],
)
def test_the_same_bytes_under_another_name_type_or_shape_are_another_tensor(
    folder_store: Store, first: object, second: object
) -> None:
    attempt = Attempt(folder_store)
    attempt.writer.write(state_of(1, [first]))  # type: ignore[list-item]
    attempt.writer.write(state_of(2, [second]))  # type: ignore[list-item]
    found = restore(folder_store)
    assert found is not None
    (record,) = found.manifest.tensors
    assert (record.name, record.dtype, tuple(record.shape)) == (second.name, second.dtype, second.shape)  # type: ignore[attr-defined]
    assert found.content[record.name] == second.data  # type: ignore[attr-defined]


def test_tensors_may_change_their_order_and_stay_unwritten(folder_store: Store) -> None:
    attempt = Attempt(folder_store)
    content = {f"t{i}": bytes([i]) * 100 for i in range(10)}
    attempt.save(1, content)
    packs = names(folder_store, "packs")
    turned = dict(reversed(content.items()))
    attempt.save(2, turned)
    assert names(folder_store, "packs") == packs
    found = restore(folder_store)
    assert found is not None
    assert list(found.content.items()) == list(turned.items())


def test_the_next_attempt_refers_to_what_it_restored(store: Store) -> None:
    Attempt(store).save(1, {"frozen": b"f" * 5000, "w": b"a"})
    second = Attempt(store)
    second.restore()
    assert second.save(2, {"frozen": b"f" * 5000, "w": b"b"}).written < 5000
    found = restore(store)
    assert found is not None
    assert found.content == {"frozen": b"f" * 5000, "w": b"b"}
    assert found.manifest.parent == second.journal.state.checkpoints[0].event.manifest
    assert found.manifest.attempt == 2


class Stages(WatchedStore):
    """Tells which puts were under way together: each waits until the others of its stage have begun."""

    def __init__(self, store: Store, *stages: set[str]) -> None:
        super().__init__(store)
        self._stages: dict[str, threading.Barrier] = {}
        for stage in stages:
            barrier = threading.Barrier(len(stage), timeout=60)
            self._stages.update(dict.fromkeys(stage, barrier))
        self.happened: list[str] = []

    def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
        name = key.split("/", maxsplit=1)[0]
        self.happened.append(f"begin {name}")
        self._stages[name].wait()
        super().put(key, parts, on_piece=on_piece)
        self.happened.append(f"end {name}")

    def create(self, key: str, data: bytes) -> bool:
        self.happened.append(f"begin {key.split('/', maxsplit=1)[0]}")
        return super().create(key, data)


def test_packs_and_metrics_then_rank_record_and_manifest_then_the_journal(folder_store: Store) -> None:
    stages = Stages(folder_store, {"packs", "metrics"}, {"ranks", "manifests"})
    attempt = Attempt(stages)
    stages.happened.clear()
    attempt.save(1, {"w": b"a"}, {"loss": [(1, 1.0)]})
    first, then, last = stages.happened[:4], stages.happened[4:8], stages.happened[8:]
    assert sorted(first) == ["begin metrics", "begin packs", "end metrics", "end packs"]
    assert sorted(then) == ["begin manifests", "begin ranks", "end manifests", "end ranks"]
    assert last == ["begin journal"]


def test_no_object_is_ever_overwritten(folder_store: Store) -> None:
    written: list[str] = []
    faulty = FaultyStore(folder_store)
    attempt = Attempt(WatchedStore(faulty, lambda method, key: written.append(key) if method == "put" else None))
    for step in range(1, 4):
        for fail_call in (1, 2, 3, 4, None):
            faulty.arm(fail_call)
            try:
                attempt.save(step, {"w": bytes([step])})
            except StoreError:
                continue
    assert len(written) == len(set(written))


def test_the_rank_record_says_what_the_manifest_says_and_is_named_by_it(store: Store) -> None:
    attempt = Attempt(store)
    attempt.save(1, {"a": b"1" * 10, "b": b"2"})
    attempt.save(2, {"a": b"1" * 10, "b": b"3"})
    for record in attempt.journal.state.checkpoints:
        manifest = load_manifest(store, record)
        (ref,) = manifest.ranks
        assert ref.key.startswith(f"ranks/1/{record.step}/0-")
        data = store.get(ref.key)
        assert sha256(data) == ref.sha256
        rank = msgspec.json.decode(data, type=RankRecord)
        assert (rank.format, rank.step, rank.attempt, rank.rank, rank.world_size) == (1, record.step, 1, 0, 1)
        assert (rank.tensors, rank.packs) == (manifest.tensors, manifest.packs)


def test_the_manifest_is_plain_json_with_all_that_the_specification_names(folder_store: Store) -> None:
    event = Attempt(folder_store).save(1, {"a": b"1"})
    document = json.loads(folder_store.get(event.manifest))
    assert list(document) == [
        "format", "run", "step", "attempt", "nonce", "created_at", "world_size", "parent", "state", "tensors", "packs",
        "ranks",
    ]  # fmt: skip
    assert document["run"] == Journal.open(folder_store).info.run


def test_a_commit_whose_reply_was_lost_is_found_again_and_its_packs_are_not_written_twice(store: Store) -> None:
    faulty = FaultyStore(store)
    attempt = Attempt(faulty)
    faulty.arm(1, moment="after", methods={"create"})
    with pytest.raises(StoreError):
        attempt.save(5, {"w": b"w" * 5000}, {"loss": [(5, 1.0)]})
    faulty.arm(None)
    event = attempt.save(5, {"w": b"w" * 5000}, {"loss": [(5, 1.0)]})
    assert event.written < 5000
    assert len(names(store, "packs")) == 1
    assert event.metrics == ""  # they came with the first
    found = restore(store)
    assert found is not None
    assert (found.step, found.content, found.passed_over) == (5, {"w": b"w" * 5000}, [])


def test_a_commit_that_failed_before_it_took_effect_is_no_parent(store: Store) -> None:
    faulty = FaultyStore(store)
    attempt = Attempt(faulty)
    first = attempt.save(4, {"w": b"a"})
    faulty.arm(1, moment="before", methods={"create"})
    with pytest.raises(StoreError):
        attempt.save(5, {"w": b"w" * 100})
    faulty.arm(1, methods={"list"})
    with pytest.raises(StoreError):  # the question what became of it fails as well: nothing is written
        attempt.save(5, {"w": b"w" * 100})
    faulty.arm(None)
    assert attempt.save(5, {"w": b"w" * 100}).parent == first.manifest
    found = restore(store)
    assert found is not None
    assert (found.step, found.content) == (5, {"w": b"w" * 100})
