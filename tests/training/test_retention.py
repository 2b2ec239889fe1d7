"""Retention while training: after each save, never at a save's cost, and never a reason to fail."""

from __future__ import annotations

import threading

import pytest
import torch

import unbroken
from unbroken.checkpoint import load_manifest, read_metrics, verify_checkpoint
from unbroken.checkpoint.pruning import Pruner
from unbroken.errors import AccessError, ConfigError, FencedError, Interrupted, StoreError
from unbroken.journal.events import Note
from unbroken.store.folder import FolderStore
from unbroken.training.agent_link import StopRequest
from unbroken.training.retention import Retention


@pytest.fixture
def turns(monkeypatch):
    """Counts the turns of retention that are over."""
    counted = threading.Condition()
    counted.over = 0
    turn = Retention.turn

    def counting(self):
        try:
            turn(self)
        finally:
            with counted:
                counted.over += 1
                counted.notify_all()

    monkeypatch.setattr(Retention, "turn", counting)
    return counted


@pytest.fixture
def train(uri, turns):
    """Trains a tiny model that saves after every step; waits, in each step, for the save before and its retention."""

    def training(until, keep, at=None):
        model = torch.nn.Linear(3, 3)
        run = unbroken.Run(uri, every=1, keep=keep, state={"model": model})
        with run:
            began = turns.over
            for step in run.steps(until=until):
                with torch.no_grad():
                    model.weight.fill_(float(step + 1))
                run.log(loss=abs(5.0 - step))
                attempt = run._opened
                assert attempt.newest_save is None or attempt.newest_save.done.wait(60)
                attempt.journal.refresh()  # the agent commits
                mine = [commit for commit in attempt.journal.state.commits if commit.attempt == run.attempt]
                with turns:
                    assert turns.wait_for(lambda mine=mine: turns.over - began == len(mine), 60)
                if at and step in at:
                    at[step]()
        return model

    return training


def kept(journal):
    return [record.step for record in journal().state.checkpoints]


def check_store(journal):
    """What is kept is whole, nothing else is there, and no logged value is lost."""
    state, store = journal().state, journal().store
    needed = set()
    for record in state.checkpoints:
        assert verify_checkpoint(store, record).problems == []
        manifest = load_manifest(store, record)
        needed |= {
            record.event.manifest,
            *(pack.key for pack in manifest.packs),
            *(rank.key for rank in manifest.ranks),
        }
    assert {info.key for folder in ("packs", "ranks", "manifests") for info in store.list(folder)} == needed
    logged = read_metrics(store, state, state.checkpoints[-1])["loss"]
    assert [step for step, _ in logged] == list(range(1, state.checkpoints[-1].step + 1))


def remarks(journal):
    notes = [entry.event for entry in journal().state.notes]
    return [note.text for note in notes if isinstance(note, Note) and note.topic == "retention"]


@pytest.mark.parametrize("keep", ["last=2,every=4,best=loss", unbroken.KeepEvery(steps=4) | unbroken.KeepBest("loss")])
def test_while_training_only_what_the_policy_says_is_kept(train, journal, keep):
    seen = []
    train(10, keep, {7: lambda: seen.extend(kept(journal))})
    assert seen == [4, 6, 7]
    assert kept(journal) == [4, 6, 8, 9, 10]
    check_store(journal)


def test_a_run_goes_on_from_what_was_kept_and_clears_up_after_attempts_before(train, journal, interrupt, uri):
    with pytest.raises(Interrupted):
        train(8, "last=2", {4: interrupt})
    stop_step = journal().state.checkpoints[-1].step
    assert stop_step == 5
    journal().store.put("packs/1/9-0-0-0badcafe.safetensors", [b"left by a save that was killed"])
    train(8, "last=2")
    assert kept(journal) == [7, 8]
    check_store(journal)


def test_without_keep_nothing_is_retired(uri, training, journal):
    training(uri, every=2).train(6)
    assert kept(journal) == [2, 4, 6]


def test_a_role_that_may_not_delete_is_told_of_once_and_training_goes_on(train, journal, monkeypatch, caplog):
    def denied(self, keys):
        raise AccessError(f"delete of {keys[0]} was denied", kind="denied")

    monkeypatch.setattr(FolderStore, "delete", denied)
    train(6, "last=2")
    assert journal().state.finished_step == 6
    assert kept(journal) == [1, 2, 3, 4, 5, 6]
    warnings = [record.message for record in caplog.records if "retention" in record.message]
    assert len(warnings) == 1
    assert "off for this attempt" in warnings[0]
    assert len(remarks(journal)) == 1
    assert "was denied" in remarks(journal)[0]


def test_a_store_that_fails_to_delete_for_a_while_is_tried_again_after_the_next_save(
    train, journal, monkeypatch, caplog
):
    delete, failing = FolderStore.delete, {"left": 4}

    def broken(self, keys):
        if "may-this" not in keys[0] and failing["left"]:
            failing["left"] -= 1
            raise StoreError("the bucket is on fire", kind="unavailable")
        delete(self, keys)

    monkeypatch.setattr(FolderStore, "delete", broken)
    train(9, "last=2")
    assert failing["left"] == 0
    assert kept(journal) == [8, 9]
    check_store(journal)
    assert len([record for record in caplog.records if "tried again" in record.message]) == 1
    assert len(remarks(journal)) == 1


def test_neither_the_loop_nor_a_save_waits_for_retention(uri, monkeypatch, journal):
    held, reached = threading.Event(), threading.Event()
    delete = FolderStore.delete

    def slow(self, keys):
        reached.set()
        assert held.wait(60)
        delete(self, keys)

    monkeypatch.setattr(FolderStore, "delete", slow)
    run = unbroken.Run(uri, every=2, keep="last=2", state={"model": torch.nn.Linear(3, 3)})
    with run:
        for step in run.steps(until=6):
            if step == 2:
                assert reached.wait(60)  # the turn after the first save does not come to its end
                assert run._opened.newest_save.done.is_set()
                assert not run._opened.busy
            if step == 4:
                assert run._opened.busy  # the save of step 4 was handed over, and is what the turn makes way for
                assert run._opened._saves.pressed
                held.set()
    assert journal().state.finished_step == 6


def test_once_a_stop_is_asked_for_retention_gives_way_at_once(uri, turns, journal, monkeypatch):
    asked = []
    turn = Pruner.turn
    monkeypatch.setattr(Pruner, "turn", lambda self, give_way: asked.append(give_way()) or turn(self, give_way))
    run = unbroken.Run(uri, every=1, keep="last=2", state={"model": torch.nn.Linear(3, 3)})
    with pytest.raises(Interrupted), run:
        for step in run.steps(until=9):
            with turns:
                assert turns.wait_for(lambda step=step: turns.over == step, 60)
            if step == 5:
                run._opened.link.stop = StopRequest(
                    "test", "a stop", run._clock.now() + 60.0, run._clock.monotonic() + 60.0
                )
    assert asked[:5] == [False] * 5
    assert all(asked[5:])  # one turn, or none where the process left before it began
    assert kept(journal) == [4, 5, 6]


def test_a_fault_in_retention_is_said_and_does_not_end_the_training(train, journal, monkeypatch, caplog):
    def faulty(self, give_way):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(Pruner, "turn", faulty)
    train(5, "last=2")
    assert journal().state.finished_step == 5
    assert kept(journal) == [1, 2, 3, 4, 5]
    assert ["a bug of ours" in text for text in remarks(journal)] == [True]
    assert any("a bug of ours" in record.message for record in caplog.records)


def test_an_attempt_that_is_fenced_while_it_prunes_stops(train, journal, monkeypatch):
    def fenced(self, give_way):
        raise FencedError("attempt 1 was replaced by attempt 2", kind="fenced")

    monkeypatch.setattr(Pruner, "turn", fenced)
    with pytest.raises(FencedError):
        train(5, "last=2")
    assert kept(journal) == [1]


@pytest.mark.parametrize("keep", ["last=0", "lats=3", 3, [], [3]])
def test_a_retention_that_is_none_is_refused_at_once(uri, keep):
    with pytest.raises(ConfigError) as caught:
        unbroken.Run(uri, keep=keep, state={"model": torch.nn.Linear(3, 3)})
    assert caught.value.kind == "keep"


def test_a_manager_keeps_what_it_is_told_to(uri, turns, journal):
    model = torch.nn.Linear(3, 3)
    with unbroken.CheckpointManager(uri, keep=unbroken.KeepLast(2)) as manager:
        for step in range(1, 6):
            with torch.no_grad():
                model.weight.fill_(float(step))
            manager.save(step, {"model": model}).wait(60)
            with turns:
                assert turns.wait_for(lambda step=step: turns.over == step, 60)
        assert manager.steps() == [4, 5]
    assert kept(journal) == [4, 5]
    for record in journal().state.checkpoints:
        assert verify_checkpoint(journal().store, record).problems == []


def test_a_manager_cannot_keep_by_values_that_it_does_not_log(uri):
    with pytest.raises(ConfigError, match="logs none"):
        unbroken.CheckpointManager(uri, keep="last=2,best=loss")
