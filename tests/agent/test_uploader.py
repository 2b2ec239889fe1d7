"""The upload thread with real slots, a real store in a folder, and a connection whose other end the test holds."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from unbroken.agent.arena import Arena
from unbroken.agent.attempt_writer import AttemptWriter
from unbroken.agent.bandwidth import BandwidthMeter
from unbroken.agent.claims import Claim
from unbroken.agent.events import Chosen, Durable, Fenced, ThreadFailed, Trouble, Woken
from unbroken.agent.uploader import Uploader
from unbroken.checkpoint import verify_checkpoint
from unbroken.clock import SYSTEM_CLOCK
from unbroken.errors import StoreError
from unbroken.journal import CheckpointRecord, Journal, Origin
from unbroken.journal.events import Note
from unbroken.link.arena import Slot, SlotOwner
from unbroken.link.channel import Channel
from unbroken.link.messages import Message, SlotCommitted, SlotFailed
from unbroken.store import open_store

ORIGIN = Origin("here", 1)


class TroubledStore:
    """Fails, or holds, the puts of packs as the test wants it."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.errors: list[BaseException] = []
        """Raised by the next puts, one each."""
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.puts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, parts: Sequence[Any], *, on_piece: Callable[[int], None] | None = None) -> None:
        self.puts.append(key)
        if key.startswith("packs/"):
            self.reached.set()
            while not self.open.wait(0.01):
                if on_piece is not None:
                    on_piece(0)
            if self.errors:
                raise self.errors.pop(0)
        self._store.put(key, parts, on_piece=on_piece)


class Node:
    """An uploader with one trainer of one attempt."""

    def __init__(self, uri: str, stager: Any) -> None:
        self.uri = uri
        self.stager = stager
        self.store: Any = TroubledStore(open_store(uri, create=True))
        self.journal = Journal.create(self.store)
        self.arena = Arena()
        self.events: queue.Queue[Any] = queue.Queue()
        self.uploader = Uploader(self.arena, self.events.put, SYSTEM_CLOCK)
        self.slots: list[Slot] = []
        self.begin()
        ours, theirs = socket.socketpair()
        self.channel, self.trainer = Channel(ours), Channel(theirs)
        theirs.settimeout(10)
        self.answers: Iterator[Message] = self.trainer.messages()

    def begin(self, attempt: Any = None) -> None:
        lease = attempt or self.journal.claim(ORIGIN)
        self.claim = Claim(self.uri, self.journal, lease, ORIGIN)
        self.writer = AttemptWriter(self.claim, SYSTEM_CLOCK)

    def offer(self, number: int, step: int, *, owner: SlotOwner | None = None, seal: bool = True) -> None:
        slot = Slot.create(number)
        self.slots.append(slot)
        lease = self.claim.lease
        self.stager.fill(slot, owner or SlotOwner(self.uri, lease.attempt, lease.claim), step, seal=seal)
        self.arena.offer(self.channel, 0, number, os.dup(slot.descriptor))

    def announce(self, number: int, step: int) -> None:
        taken = self.arena.take(self.channel, 0, number)
        assert taken is not None
        self.uploader.submit(self.writer, self.channel, taken, step)

    def save(self, step: int, number: int = 0) -> None:
        self.offer(number, step)
        self.announce(number, step)

    def answer(self) -> Message:
        return next(self.answers)

    def failure(self) -> SlotFailed:
        answer = self.answer()
        assert isinstance(answer, SlotFailed), answer
        return answer

    def records(self) -> list[CheckpointRecord]:
        journal = Journal.open(open_store(self.uri))
        for record in journal.state.checkpoints:
            assert verify_checkpoint(journal.store, record).problems == []
        return journal.state.checkpoints

    def until(self, kind: type) -> Any:
        while not isinstance(event := self.events.get(timeout=10), kind):
            pass
        return event

    def close(self) -> None:
        self.store.open.set()
        assert self.uploader.close(10)
        self.arena.close()
        for slot in self.slots:
            slot.close()
        self.channel.close()
        self.trainer.close()


@pytest.fixture
def node(tmp_path: Path, stager: Any) -> Iterator[Node]:
    node = Node(str(tmp_path / "run"), stager)
    yield node
    node.close()


def test_slot_becomes_a_checkpoint_and_its_trainer_hears_of_it(node: Node) -> None:
    node.writer.restored("")
    node.save(4)
    answer = node.answer()
    (record,) = node.records()
    assert answer == SlotCommitted(0, record.event)
    assert node.until(Durable) == Durable(record.event, 1)
    node.until(Woken)
    assert node.uploader.left() == ()


def test_each_checkpoint_continues_the_one_before_and_the_first_what_was_restored(node: Node) -> None:
    node.writer.restored("")
    node.save(4)
    node.save(8, 1)
    node.answer()
    node.answer()
    restored = node.records()[0].event.manifest
    node.begin()
    node.save(5)
    assert node.uploader.left() == (5,)  # it waits for the word, which may come after the announcement
    node.writer.restored(restored)
    node.answer()
    records = node.records()
    assert [record.event.parent for record in records] == ["", restored, restored]
    assert records[2].event.written < records[0].event.written


def test_adopted_attempt_continues_its_own_newest_checkpoint(node: Node) -> None:
    node.writer.restored("")
    node.save(4)
    node.answer()
    node.begin(node.claim.lease)
    node.save(8, 1)
    node.answer()
    records = node.records()
    assert records[1].event.parent == records[0].event.manifest


def test_adopted_attempt_without_a_checkpoint_continues_what_the_journal_says_was_restored(node: Node) -> None:
    node.writer.restored("")
    node.save(4)
    node.answer()
    node.begin()
    node.claim.append(Note("restored", "from step 4", {"step": 4}))
    node.save(5, 1)
    node.writer.parted()  # dead before it could say so again
    node.answer()
    records = node.records()
    assert records[1].event.parent == records[0].event.manifest


def test_commit_whose_reply_was_lost_is_answered_and_not_made_again(node: Node) -> None:
    node.writer.restored("")
    node.save(4)
    first = node.answer()
    node.begin(node.claim.lease)
    puts = len(node.store.puts)
    node.announce(0, 4)
    assert node.answer() == first
    assert len(node.store.puts) == puts
    assert len(node.records()) == 1


def test_another_state_at_a_committed_step_is_written(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that went back to an older checkpoint comes to the same step again, with other values."""
    node.writer.restored("")
    node.save(3)
    first = node.answer()
    assert isinstance(first, SlotCommitted)
    node.save(5, 1)
    node.answer()
    node.writer.restored(first.event.manifest)
    content = node.stager.content
    monkeypatch.setattr(node.stager, "content", lambda step, name: content(step + 100, name))
    node.stager.fill(node.slots[0], SlotOwner(node.uri, 1, node.claim.lease.claim), 5)
    node.announce(0, 5)
    node.answer()
    records = node.records()
    assert [record.step for record in records] == [3, 5, 5]
    assert records[2].event.parent == first.event.manifest
    assert records[2].event.written > 1000


def test_a_slot_that_is_written_to_under_the_upload_is_no_checkpoint(node: Node) -> None:
    node.writer.restored("")
    node.store.open.clear()
    node.save(4)
    assert node.store.reached.wait(10)
    node.slots[0].reserve(10)
    assert node.failure().kind == "abandoned"
    assert node.records() == []


@pytest.mark.parametrize("wrong", [{"attempt": 7}, {"claim": "x"}, {"uri": "/elsewhere"}])
def test_slot_of_somebody_else_is_not_uploaded(node: Node, wrong: dict[str, Any]) -> None:
    lease = node.claim.lease
    owner = {"uri": node.uri, "attempt": lease.attempt, "claim": lease.claim, **wrong}
    node.offer(0, 4, owner=SlotOwner(**owner))
    node.announce(0, 4)
    assert (node.failure().error, node.records()) == ("StoreError", [])


def test_slot_with_another_step_or_without_a_seal_is_not_uploaded(node: Node) -> None:
    node.offer(0, 4)
    node.announce(0, 5)
    assert node.failure().kind == "slot"
    node.offer(1, 4, seal=False)
    node.announce(1, 4)
    assert node.failure().kind == "slot"
    assert node.records() == []


def test_save_is_tried_three_times_and_the_next_one_is_not_harmed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbroken.agent.uploader._FIRST_PAUSE", 0.01)
    node.writer.restored("")
    node.store.errors = [StoreError("away", kind="unavailable")] * 3
    node.save(4)
    failure = node.failure()
    assert (failure.step, failure.error, failure.kind) == (4, "StoreError", "unavailable")
    node.store.errors = [StoreError("away", kind="unavailable")] * 2
    node.save(8, 1)
    assert isinstance(node.answer(), SlotCommitted)
    assert [record.step for record in node.records()] == [8]


def test_fault_of_our_own_is_a_failed_save_and_the_thread_goes_on(node: Node) -> None:
    node.writer.restored("")
    node.store.errors = [ZeroDivisionError("made up")]
    node.save(4)
    assert node.failure().kind == "fault"
    node.until(Woken)
    assert node.uploader.left() == ()
    node.announce(0, 4)
    assert isinstance(node.answer(), SlotCommitted)


def test_fenced_attempt_uploads_nothing_and_its_agent_hears_of_it(node: Node) -> None:
    Journal.open(open_store(node.uri)).claim(Origin("elsewhere", 2))
    node.save(4)
    assert node.failure().error == "FencedError"
    assert node.until(Fenced).attempt == 1
    assert node.store.puts == []


def test_state_of_a_dead_trainer_is_tried_for_as_long_as_it_takes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbroken.agent.uploader._FIRST_PAUSE", 0.01)
    node.writer.restored("")
    node.store.errors = [StoreError("away", kind="unavailable")] * 5
    node.store.open.clear()
    node.save(4)
    assert node.store.reached.wait(10)
    node.channel.close()
    node.uploader.parted(node.channel)
    node.store.open.set()
    assert node.until(Durable).event.step == 4


def test_abandoned_upload_ends_at_its_next_piece_and_leaves_no_commit(node: Node) -> None:
    node.writer.restored("")
    node.store.open.clear()
    node.save(4)
    assert node.store.reached.wait(10)
    node.uploader.abandon("no time")
    assert node.failure().kind == "abandoned"
    assert node.records() == []
    node.store.open.set()
    node.announce(0, 4)
    assert isinstance(node.answer(), SlotCommitted)


def test_state_that_nobody_waits_for_any_more_is_said_to_be_lost(node: Node) -> None:
    node.offer(0, 4, seal=False)
    node.channel.close()
    node.announce(0, 4)
    assert "step 4, which the trainer left in memory, is lost" in node.until(Trouble).text


def test_older_state_is_given_up_for_the_stop_step_and_the_trainer_hears_of_both(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BandwidthMeter, "bandwidth", 64 << 10)  # a state takes 61 s at four fifths of that
    node.writer.restored("")
    node.store.open.clear()
    node.save(40)
    assert node.store.reached.wait(10)
    node.offer(1, 90)
    node.uploader.press(SYSTEM_CLOCK.monotonic() + 90)
    node.uploader.stopping(90)
    choice = node.until(Chosen)
    node.announce(1, 90)
    failure = node.failure()
    assert (choice.action, failure.step, failure.kind) == ("replace", 40, "abandoned"), choice.text
    node.store.open.set()
    assert isinstance(node.answer(), SlotCommitted)
    assert [record.step for record in node.records()] == [90]


def test_closing_gives_every_slot_back_and_ends_the_thread(node: Node) -> None:
    node.writer.restored("")
    node.store.open.clear()
    node.save(4)
    assert node.store.reached.wait(10)
    node.save(8, 1)
    assert node.uploader.close(10)
    assert [node.failure().kind for _ in range(2)] == ["abandoned", "abandoned"]
    assert [slot.number for slot in node.arena.inherit(object(), 0)] == [0, 1]
    taken = node.arena.take(node.channel, 0, 0)
    assert taken is None


def test_notice_just_after_a_commit_finds_the_uploader_alive(node: Node) -> None:
    told: list[Any] = []

    def tell(event: Any) -> None:
        told.append(event)
        if isinstance(event, Durable):  # the slot is given back, and its trainer not told yet
            node.uploader.press(SYSTEM_CLOCK.monotonic() + 60)
            node.uploader.stopping(9)

    node.uploader.close(10)
    node.uploader = Uploader(node.arena, tell, SYSTEM_CLOCK)
    node.writer.restored("")
    node.save(4, 0)
    assert isinstance(node.answer(), SlotCommitted)
    node.save(9, 1)
    assert isinstance(node.answer(), SlotCommitted)
    assert [event for event in told if isinstance(event, ThreadFailed)] == []
    assert [record.step for record in node.records()] == [4, 9]


def test_trainer_that_hears_of_its_commit_leaves_nothing_behind(node: Node) -> None:
    left: list[tuple[int, ...]] = []
    send = node.channel.send

    def look(message: Message, descriptor: int | None = None) -> None:
        left.append(node.uploader.left())
        send(message, descriptor)

    node.channel.send = look  # type: ignore[method-assign]
    node.writer.restored("")
    node.save(4)
    assert isinstance(node.answer(), SlotCommitted)
    assert left == [()]
