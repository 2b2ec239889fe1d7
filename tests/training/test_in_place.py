"""A restore into live objects: nothing changes before it is known to fit, and a spoilt state is called one."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tests.checkpoint.conftest import WatchedStore
from tests.training.saved import bits, objects_of, save, trained

from unbroken import CheckpointManager
from unbroken.checkpoint import (
    CheckpointWriter,
    HostState,
    HostTensor,
    Manifest,
    RankWriter,
    commit_ranks,
    load_head,
    load_manifest,
    restore_newest,
)
from unbroken.checkpoint.importing import import_state
from unbroken.errors import DamagedError, MismatchError, StoreError
from unbroken.journal import CheckpointRecord, Journal, Origin
from unbroken.store import open_store
from unbroken.testing import FakeClock, FaultyStore, flip_bit
from unbroken.training.capture import capture, dtype_name
from unbroken.training.in_place import InPlaceRestore, RestoreProgress
from unbroken.training.objects import StateObject
from unbroken.training.ranks import Ranks
from unbroken.training.restore import bytes_of, load_state

SPOILT = "must not be trained on"


def restore(uri: str, state: dict[str, Any], *, store: Any = None, **options: Any) -> list[int]:
    """Restore the newest sound checkpoint; the steps of those that were damaged."""
    journal = Journal.open(store or open_store(uri))
    passed_over: list[int] = []
    with InPlaceRestore(journal.store, journal.state, objects_of(state), **options) as work:
        found = restore_newest(
            journal.store, journal.state, work.load, on_damaged=lambda record, _: passed_over.append(record.step)
        )
        assert found is not None
        work.apply(found[1], found[2])
    return passed_over


def damage(uri: str, step: int, tensor: str) -> None:
    """Flip a bit of a tensor in the checkpoint of a step."""
    store = open_store(uri)
    (record,) = (record for record in Journal.open(store).state.checkpoints if record.step == step)
    manifest = load_manifest(store, record)
    (piece,) = manifest.tensor(tensor).slices
    flip_bit(store, manifest.packs[piece.pack].key, piece.start)


class TestMismatch:
    """One object does not fit; those before it in the state keep their bits."""

    def check(self, uri: str, other: dict[str, Any], match: str) -> None:
        save(uri, trained(1))
        before = bits(other)
        with pytest.raises(MismatchError, match=match) as caught:
            restore(uri, other)
        assert bits(other) == before
        assert SPOILT not in caught.value.hint

    def test_a_tensor(self, uri):
        self.check(uri, {**trained(2), "scale": torch.rand(4)}, r"float32\[3\] for scale, and the program float32\[4\]")

    def test_an_optimizer(self, uri):
        other = trained(2)
        other["optimizer"].add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
        self.check(uri, other, r"optimizer refused the checkpoint's state: it has groups of \[4, 1\]")

    def test_a_module(self, uri):
        other = trained(2)
        other["model"].append(torch.nn.Linear(1, 1))
        self.check(uri, other, "2.weight is not in the checkpoint")

    def test_the_names_of_the_objects(self, uri):
        self.check(uri, {**trained(2), "more": torch.ones(1)}, "more is not in the checkpoint")


class TestDamage:
    def test_an_older_checkpoint_is_read_over_what_a_damaged_one_left(self, uri):
        older, newer, other = trained(1), trained(2), trained(3)
        save(uri, older, step=1)
        save(uri, newer, step=2)
        damage(uri, 2, "scale")  # all else of it arrives
        assert restore(uri, other) == [2]
        assert bits(other) == bits(older)

    def test_where_all_are_damaged_the_error_says_that_the_state_is_spoilt(self, uri):
        save(uri, trained(1))
        damage(uri, 1, "model/0.weight")
        with pytest.raises(DamagedError, match="begin a new run") as caught:
            restore(uri, trained(2))
        assert caught.value.kind == "all-damaged"
        assert SPOILT in caught.value.hint

    def test_a_store_that_fails_in_the_middle_says_so_too(self, uri):
        save(uri, trained(1))
        store = FaultyStore(open_store(uri), fail_call=1, methods={"get_range"})
        with pytest.raises(StoreError) as caught:
            restore(uri, trained(2), store=store)
        assert SPOILT in caught.value.hint

    def test_any_other_error_carries_a_note(self, uri, monkeypatch):
        def interrupted(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        save(uri, trained(1))
        monkeypatch.setattr("unbroken.training.in_place.load_state", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            restore(uri, trained(2))
        assert SPOILT in caught.value.__notes__[0]

    def test_an_error_before_the_first_byte_says_nothing_of_it(self, uri):
        save(uri, trained(1))
        store = open_store(uri)
        journal = Journal.open(store)
        with pytest.raises(StoreError) as caught, InPlaceRestore(store, journal.state, objects_of(trained(2))):
            raise StoreError("the manifest could not be read")
        assert caught.value.hint == ""

    def test_an_object_that_loads_badly_after_reading_in_place_leaves_a_spoilt_state(self, uri):
        class Picky:
            def state_dict(self):
                return {}

            def load_state_dict(self, state):
                raise ValueError("no")

        save(uri, {**trained(1), "picky": Picky()})
        with pytest.raises(MismatchError, match="picky refused") as caught:
            restore(uri, {**trained(2), "picky": Picky()})
        assert SPOILT in caught.value.hint


class TestImported:
    """The first checkpoint holds the model alone: all else keeps its initial state, whatever was tried before."""

    def begin(self, uri: str, state: dict[str, Any], *, by_import: bool) -> None:
        captured = capture(objects_of({"model": state["model"]}))
        tensors = [
            HostTensor(name, str(held.dtype).removeprefix("torch."), tuple(held.shape), bytes_of(held))
            for name, held in captured.tensors.items()
        ]
        host = HostState(0, captured.tree, tensors, partial=True)
        store = open_store(uri, create=True)
        if by_import:
            import_state(store, host, Origin("host", 1))
            return
        journal = Journal.create(store)
        lease = journal.claim(Origin("host", 1))
        CheckpointWriter(journal, lease, Origin("host", 1)).write(host)

    def test_a_damaged_newer_checkpoint_does_not_spoil_what_the_import_lacks(self, uri):
        first, other = trained(1), trained(3)
        self.begin(uri, first, by_import=True)
        save(uri, trained(2), step=1)
        damage(uri, 1, "model/0.weight")
        scale, moments = other["scale"].tolist(), other["optimizer"].state_dict()["state"][0]["exp_avg"].tolist()
        assert restore(uri, other) == [1]
        assert bits(other)["0.weight"] == bits(first)["0.weight"]
        assert other["scale"].tolist() == scale
        assert other["optimizer"].state_dict()["state"][0]["exp_avg"].tolist() == moments

    def test_a_sound_newer_checkpoint_is_restored_whole(self, uri):
        newer, other = trained(2), trained(3)
        self.begin(uri, trained(1), by_import=True)
        save(uri, newer, step=1)
        assert restore(uri, other) == []
        assert bits(other) == bits(newer)

    def test_a_partial_checkpoint_of_unknown_make_is_not_taken_where_the_rest_is_spoilt(self, uri):
        self.begin(uri, trained(1), by_import=False)
        save(uri, trained(2), step=1)
        damage(uri, 1, "model/0.weight")
        with pytest.raises(MismatchError, match="holds no optimizer, scale, whose initial state is gone") as caught:
            restore(uri, trained(3))
        assert SPOILT in caught.value.hint


class NoStore:
    """A store that must not be asked."""

    uri = "nowhere"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the store was asked to {name}")


def staged_bytes(state: dict[str, Any]) -> dict[str, memoryview]:
    return {name: bytes_of(held.clone()) for name, held in capture(objects_of(state)).tensors.items()}


def test_a_checkpoint_that_lies_in_memory_comes_from_there(uri):
    state, other = trained(1), trained(2)
    manifest = save(uri, state)
    journal = Journal.open(open_store(uri))
    (record,) = journal.state.checkpoints
    asked: list[int] = []

    def staged(which: CheckpointRecord) -> dict[str, memoryview]:
        asked.append(which.step)
        return staged_bytes(state)

    work = InPlaceRestore(NoStore(), journal.state, objects_of(other), staged=staged)  # type: ignore[arg-type]
    work.apply(manifest, work.load(record, manifest))
    assert bits(other) == bits(state)
    assert asked == [1]


def test_memory_that_holds_something_else_is_not_believed(uri, caplog):
    state, other = trained(1), trained(2)
    save(uri, state)
    restore(uri, other, staged=lambda _: staged_bytes(trained(3)))
    assert bits(other) == bits(state)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_manager_restores_in_place(uri, monkeypatch):
    state, other = trained(1), trained(2)
    save(uri, state)

    def no_second_copy(*_: Any) -> torch.Tensor:
        raise AssertionError("memory was asked for")

    monkeypatch.setattr("unbroken.training.restore._fresh", no_second_copy)
    with CheckpointManager(uri) as manager:
        assert manager.restore(other) == 1
    assert bits(other) == bits(state)


def test_a_backward_pass_over_values_that_a_restore_replaced_is_refused(uri):
    state = {"model": torch.nn.Linear(2, 2)}
    save(uri, state)
    loss = (state["model"](torch.ones(1, 2, requires_grad=True)) ** 2).sum()
    restore(uri, state)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_loading_without_live_tensors_leaves_them_alone(uri):
    state = trained(1)
    manifest: Manifest = save(uri, state)
    before = bits(state)
    loaded = load_state(open_store(uri), manifest)
    loaded["model"]["0.weight"].zero_()
    assert bits(state) == before


class TestProgress:
    def lines(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        return [record.getMessage() for record in caplog.records]

    def test_nothing_is_said_of_a_short_restore(self, caplog):
        caplog.set_level(logging.INFO, "unbroken")
        clock = FakeClock()
        told = RestoreProgress(4_000_000_000, clock=clock)
        for _ in range(4):
            clock.advance(1.2)
            told(1_000_000_000)
        assert self.lines(caplog) == []

    def test_the_agent_is_told_twice_a_second(self):
        clock, found = FakeClock(), []
        told = RestoreProgress(1000, tell=lambda done, total: found.append((done, total)), clock=clock)
        for _ in range(8):
            clock.advance(0.25)
            told(100)
        assert found == [(200, 1000), (400, 1000), (600, 1000), (800, 1000)]

    def test_a_line_every_five_seconds(self, caplog):
        caplog.set_level(logging.INFO, "unbroken")
        clock = FakeClock()
        told = RestoreProgress(61_000_000_000, clock=clock)
        for _ in range(12):
            clock.advance(1.0)
            told(1_230_000_000)
        assert self.lines(caplog) == [
            "unbroken: restoring 6.2 of 61.0 GB (1.2 GB/s)",
            "unbroken: restoring 12.3 of 61.0 GB (1.2 GB/s)",
        ]


class TestRanks:
    """Of four ranks that have everything alike, all small: rank 0 stages it, and each its own generator."""

    COUNT = 4

    def program(self, rank: int, seed: int) -> list[StateObject]:
        return [*objects_of({**trained(seed), "own": torch.Generator().manual_seed(seed + rank)})]

    def save(self, uri: str) -> Journal:
        origin = Origin("host", 1)
        journal = Journal.create(open_store(uri, create=True))
        lease, durable = journal.claim(origin), {}
        for rank in range(self.COUNT):
            captured = capture(self.program(rank, 1), Ranks(rank, self.COUNT))
            tensors = [HostTensor(n, dtype_name(t), tuple(t.shape), bytes_of(t)) for n, t in captured.tensors.items()]
            state = HostState(
                1, captured.tree, tensors, rank=rank, world_size=self.COUNT, local=captured.local,
                shared=captured.shared,
            )  # fmt: skip
            writer = RankWriter(journal, lease, origin, rank=rank, world_size=self.COUNT)
            durable[rank] = writer.write(state)
        commit_ranks(journal, lease, origin, durable)
        return journal

    def test_each_reads_the_records_that_it_needs_and_no_damage_in_others(self, uri):
        journal = self.save(uri)
        record = journal.state.checkpoints[-1]
        journal.store.delete([load_head(journal.store, record).ranks[3].key])
        read: list[str] = []
        store = WatchedStore(journal.store, lambda method, key: read.append(key) if method == "get" else None)
        objects = self.program(2, 5)
        with InPlaceRestore(store, journal.state, objects, ranks=Ranks(2, self.COUNT)) as work:
            manifest = work.read_manifest(record)
            assert sorted(key.split("-")[0] for key in read if key.startswith("ranks/")) == [
                "ranks/1/1/0",
                "ranks/1/1/2",
            ]
            work.apply(manifest, work.load(record, manifest))
        here, there = capture(objects).tensors, capture(self.program(2, 1)).tensors
        assert all(torch.equal(here[name], there[name]) for name in here.keys() | there.keys())
        work = InPlaceRestore(store, journal.state, objects, ranks=Ranks(3, self.COUNT))
        with pytest.raises(DamagedError, match="ranks/1/1/3"):
            work.read_manifest(record)

    def staged(self, seed: int) -> dict[str, memoryview]:
        """What rank 2 has left in memory: its own generator, and nothing of what rank 0 staged for all."""
        captured = capture(self.program(2, seed), Ranks(2, self.COUNT)).tensors
        return {name: bytes_of(tensor.clone()) for name, tensor in captured.items()}

    def test_memory_of_a_rank_lacks_what_others_staged_and_nobody_is_alarmed(self, uri, caplog):
        journal = self.save(uri)
        record = journal.state.checkpoints[-1]
        read: list[str] = []
        store = WatchedStore(journal.store, lambda _, key: read.append(key))
        objects, staged = self.program(2, 5), self.staged(1)
        with InPlaceRestore(store, journal.state, objects, ranks=Ranks(2, self.COUNT), staged=lambda _: staged) as work:
            manifest = work.read_manifest(record)
            work.apply(manifest, work.load(record, manifest))
        here, there = capture(objects).tensors, capture(self.program(2, 1)).tensors
        assert all(torch.equal(here[name], there[name]) for name in here.keys() | there.keys())
        assert caplog.messages == []
        packs = {key.split("/")[-1].split("-")[1] for key in read if key.startswith("packs/")}
        assert packs == {"0"}  # its own came from memory

    def test_memory_of_a_rank_that_holds_something_else_is_not_believed(self, uri, caplog):
        journal = self.save(uri)
        record = journal.state.checkpoints[-1]
        objects, staged = self.program(2, 5), self.staged(3)
        with InPlaceRestore(
            journal.store, journal.state, objects, ranks=Ranks(2, self.COUNT), staged=lambda _: staged
        ) as work:
            manifest = work.read_manifest(record)
            work.apply(manifest, work.load(record, manifest))
        here, there = capture(objects).tensors, capture(self.program(2, 1)).tensors
        assert all(torch.equal(here[name], there[name]) for name in here.keys() | there.keys())
        (line,) = caplog.messages
        assert "memory differs" in line
        assert "rank2/own" in line
        assert "model" not in line

    def test_one_alone_reads_all_of_it(self, uri):
        journal = self.save(uri)
        record = journal.state.checkpoints[-1]
        with InPlaceRestore(journal.store, journal.state, self.program(0, 5)) as work:
            assert work.read_manifest(record) == load_manifest(journal.store, record)
