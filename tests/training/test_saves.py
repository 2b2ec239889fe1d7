"""The saves of an attempt become durable in the order of their steps."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from unbroken.checkpoint import Manifest
from unbroken.clock import SystemClock
from unbroken.journal import CheckpointRecord
from unbroken.journal.events import CheckpointCommitted
from unbroken.link.arena import Slot, SlotOwner
from unbroken.training.objects import state_objects
from unbroken.training.saver import PendingSave
from unbroken.training.saves import Saves
from unbroken.training.staging import SnapshotSpoiled


class PatientClock(SystemClock):
    """Says when somebody begins to wait."""

    def __init__(self) -> None:
        self.waited = threading.Event()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.waited.set()
        return super().wait(event, seconds)


class Order:
    """A writer that keeps the order in which it hears of saves."""

    def __init__(self, clock: PatientClock) -> None:
        self.announced: list[int] = []
        self.written: list[int] = []
        self._clock = clock

    def offer(self, slots: Sequence[Slot]) -> None:
        pass

    def announce(self, pending: PendingSave) -> None:
        self.announced.append(pending.step)
        self._clock.waited.set()

    def write(self, pending: PendingSave) -> CheckpointCommitted:
        self.written.append(pending.step)
        return CheckpointCommitted(pending.step, f"manifests/{pending.step}.json", "aa", 1, 1)

    def continue_from(self, record: CheckpointRecord, manifest: Manifest) -> None:
        raise AssertionError

    def hurry(self) -> None:
        pass


def test_save_that_is_copied_at_once_does_not_overtake_one_that_is_still_being_copied():
    model = torch.nn.Linear(512, 512)
    objects = state_objects({"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)})
    clock = PatientClock()
    writer, failures = Order(clock), []
    saves = Saves(
        SlotOwner("run", 1, "claim"), writer, overlap=True, on_committed=lambda _: None,
        on_failed=lambda *failure: failures.append(failure), when_idle=lambda: None, say=failures.append, clock=clock,
    )  # fmt: skip
    saves._staging._gate = lambda: None if clock.waited.wait(20) else failures.append("nobody waits")
    try:
        saves.prepare(objects)
        clock.waited.clear()
        first = saves.begin(objects, 1, {}, since=None, standing=False, patience=lambda: 20.0)
        last = saves.begin(objects, 2, {}, since=None, standing=True, patience=lambda: 20.0)
        assert first is not None
        assert last is not None
        assert first.done.wait(20)
        assert last.done.wait(20)
    finally:
        assert saves.close(20)
    assert (writer.announced, writer.written, failures) == ([1, 2], [1, 2], [])


def test_close_does_not_wait_for_a_thread_that_can_copy_no_more(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    model = torch.nn.Linear(512, 512)
    objects = state_objects({"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)})
    clock, failures = PatientClock(), []
    saves = Saves(
        SlotOwner("run", 1, "claim"), Order(clock), overlap=True, on_committed=lambda _: None,
        on_failed=lambda step, error: failures.append((step, type(error))), when_idle=lambda: None,
        say=lambda _: None, clock=clock,
    )  # fmt: skip

    def die() -> None:
        raise SystemExit

    saves._staging._gate = die
    try:
        saves.prepare(objects)
        pending = saves.begin(objects, 1, {}, since=None, standing=False, patience=lambda: 20.0)
        assert pending is not None
        saves._staging._copying._thread.join(20)
        assert not saves._staging.copies
        assert not pending.staged.is_set()
        clock.waited.clear()
    finally:
        assert saves.close(20)
    assert not clock.waited.is_set()
    assert pending.done.is_set()
    assert failures == [(1, SnapshotSpoiled)]
