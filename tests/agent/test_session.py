"""Trainers and agent on a real socket with a real journal, in one process."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unbroken.agent import claims, roster
from unbroken.agent.arena import Arena
from unbroken.agent.claims import Claims
from unbroken.agent.events import Admitted, Departed, Durable, Event, Fenced, Told, Trouble, Woken
from unbroken.agent.session import Session
from unbroken.clock import SYSTEM_CLOCK
from unbroken.errors import FencedError
from unbroken.journal import Journal, Origin
from unbroken.journal.events import CheckpointCommitted, Note
from unbroken.link.arena import Slot, SlotOwner
from unbroken.link.channel import Channel, connect
from unbroken.link.messages import (
    PROTOCOL,
    Advice,
    Bye,
    Committed,
    Hello,
    Message,
    Refused,
    Restored,
    Sealed,
    SlotCommitted,
    SlotFailed,
    SlotOffered,
    Stop,
    Welcome,
)
from unbroken.link.progress import ProgressPage
from unbroken.store import Store, open_store

STOP = Stop("ec2", "terminate", 2_000_000_000.0)


@dataclass(frozen=True)
class Trainer:
    channel: Channel
    messages: Iterator[Message]


class Node:
    """A session and what it posted."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.uri = uri
        self.events: queue.Queue[Event] = queue.Queue()
        self.claims = Claims(Origin("here", 1), ["train"], 5, SYSTEM_CLOCK)
        self.arena = Arena()
        self.session = Session(folder / "agent.sock", self.claims, self.arena, self.events.put, SYSTEM_CLOCK)
        self.path = folder / "agent.sock"
        self.channels: list[Channel] = []

    def join(self, **fields: object) -> tuple[Trainer, Message]:
        """Connect a trainer; its end of the link and the agent's answer."""
        channel = connect(self.path, timeout=10)
        channel._socket.settimeout(10)  # a message that does not come ends the iterator instead of hanging
        self.channels.append(channel)
        given = {"protocol": PROTOCOL, "uri": self.uri, "pid": 1, **fields}
        channel.send(Hello(**given))  # type: ignore[arg-type]
        messages = channel.messages()
        answer = next(messages)
        return Trainer(channel, messages), answer

    def until(self, kind: type[Event]) -> Event:
        while True:
            event = self.events.get(timeout=10)
            if isinstance(event, kind):
                return event

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.session.close()
        self.arena.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="ub-") as folder:
        node = Node(Path(folder), str(tmp_path / "run"))
        yield node
        node.close()


def journal(node: Node) -> Journal:
    return Journal.open(open_store(node.uri))


def test_ranks_of_one_start_share_one_attempt(node: Node) -> None:
    _, first = node.join(rank=0)
    _, second = node.join(rank=1)
    assert isinstance(first, Welcome)
    assert second == first
    assert list(journal(node).state.attempts) == [1]
    assert [hello.rank for hello in node.session.trainers()] == [0, 1]


def test_trainers_that_come_after_the_others_left_are_a_new_attempt(node: Node) -> None:
    trainer, _ = node.join()
    channel = trainer.channel
    channel.send(Bye("failed", 4, "RuntimeError", "made to fail", 1))
    channel.close()
    node.until(Departed)
    _, answer = node.join(pid=2)
    assert isinstance(answer, Welcome)
    assert answer.attempt == 2
    state = journal(node).state
    assert state.attempts[1].ended is not None
    assert state.attempts[1].ended.cause == "failed"
    assert node.session.heard().byes == ()


def test_rank_that_ends_without_a_word_is_lost_until_the_next_attempt(node: Node) -> None:
    first, welcome = node.join(rank=0, world_size=3)
    assert isinstance(welcome, Welcome)
    given = {"attempt": welcome.attempt, "claim": welcome.claim, "joining": True, "world_size": 3}
    others = [node.join(rank=rank, **given)[0] for rank in (1, 2)]
    first.channel.send(Bye("failed", 4, "RuntimeError", "made to fail", 1))
    for trainer in (others[1], first, others[0]):
        trainer.channel.close()
        node.until(Departed)
    assert node.session.heard().lost == (2, 1)
    node.join(rank=0, world_size=3)
    assert node.session.heard().lost == ()


def test_second_trainer_of_one_rank_is_refused_and_the_first_goes_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "DEPARTURE_SECONDS", 0.01)
    first, _ = node.join(pid=7)
    _, answer = node.join(pid=8)
    assert isinstance(answer, Refused)
    assert (answer.error, answer.kind) == ("ConfigError", "second-trainer")
    assert "process 8" in answer.message
    assert "process 7" in answer.message
    assert node.session.stop(STOP)
    assert next(first.messages) == STOP
    assert list(journal(node).state.attempts) == [1]


def test_trainer_that_said_goodbye_is_gone_though_its_connection_stays_open(node: Node) -> None:
    first, _ = node.join(pid=7)
    first.channel.send(Bye("left", 4))
    node.until(Told)
    assert not node.session.connected()
    assert not node.session.stop(STOP)
    _, answer = node.join(pid=8)
    assert isinstance(answer, Welcome)
    assert answer.attempt == 2


def test_progress_is_followed_across_a_clock_that_is_set_back(node: Node, tmp_path: Path) -> None:
    page = ProgressPage(tmp_path / "page", create=True)
    page.write(1, 9, 1000.0, 0.0, -1, 0.0)
    node.join(progress=str(page.path))
    first = node.session.heard().progress
    page.write(2, 9, 400.0, 0.0, -1, 0.0)
    second = node.session.heard().progress
    page.close()
    assert first is not None
    assert second is not None
    assert (first.step, second.step) == (1, 2)


def test_progress_of_several_ranks_is_that_of_the_slowest(node: Node, tmp_path: Path) -> None:
    pages = [ProgressPage(tmp_path / f"page{rank}", create=True) for rank in range(3)]
    for page, step in zip(pages, (6, 5, 7), strict=True):
        page.write(step, 9, 1000.0 + step, 0.0, -1, 0.0)
    _, first = node.join(rank=0, world_size=3, progress=str(pages[0].path))
    assert isinstance(first, Welcome)
    for rank in (1, 2):
        given = {"attempt": first.attempt, "claim": first.claim, "joining": True}
        node.join(rank=rank, world_size=3, progress=str(pages[rank].path), **given)
    progress = node.session.heard().progress
    for page in pages:
        page.close()
    assert progress is not None
    assert progress.step == 5


def test_greeting_that_hangs_in_the_store_claims_nothing_once_the_session_is_closed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, release = threading.Event(), threading.Event()

    def slow(uri: str, *, create: bool) -> Store:
        reached.set()
        release.wait(30)
        return open_store(uri, create=create)

    monkeypatch.setattr(claims, "open_store", slow)
    channel = connect(node.path, timeout=10)
    node.channels.append(channel)
    channel.send(Hello(PROTOCOL, node.uri, 1))
    assert reached.wait(10)
    (greeting,) = [thread for thread in threading.enumerate() if thread.name == "unbroken-link"]
    node.session.close(0.01)
    release.set()
    greeting.join(10)
    assert not greeting.is_alive()
    assert list(journal(node).state.attempts) == []
    assert node.events.empty()


def test_record_that_hangs_in_the_store_posts_nothing_once_the_session_is_closed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.join()
    node.until(Admitted)
    reached, release = threading.Event(), threading.Event()

    def slow(_: claims.Claim, event: object) -> None:
        reached.set()
        release.wait(30)
        raise FencedError(f"{event} comes too late")

    monkeypatch.setattr(claims.Claim, "append", slow)
    first, second = (node.session.record(Note("test", str(n))) for n in (1, 2))
    assert first is not None
    assert second is not None
    assert reached.wait(10)
    node.session.close(0.01)
    while not node.events.empty():
        node.events.get()  # the trainer's departure
    reached.clear()
    release.set()
    second.result(10)
    assert node.events.empty()
    assert not reached.is_set()


def test_record_for_an_attempt_that_this_command_went_on_from_fences_nothing(node: Node) -> None:
    trainer, _ = node.join()
    held = node.session.claim
    assert held is not None
    trainer.channel.send(Bye("left", 1))
    node.until(Told)
    node.join(pid=2)
    node.session._append(held, Note("test", "of the first attempt"))
    assert not node.session.heard().fenced


def test_attempt_of_a_dead_agent_is_adopted(node: Node) -> None:
    run = Journal.create(open_store(node.uri, create=True))
    lease = run.claim(Origin("here", 9))
    _, answer = node.join(attempt=lease.attempt, claim=lease.claim)
    assert answer == Welcome(lease.attempt, lease.claim)
    assert list(journal(node).state.attempts) == [1]


def test_replaced_attempt_is_not_adopted(node: Node) -> None:
    run = Journal.create(open_store(node.uri, create=True))
    lease = run.claim(Origin("here", 9))
    run.claim(Origin("elsewhere", 9))
    _, answer = node.join(attempt=lease.attempt, claim=lease.claim)
    assert isinstance(answer, Refused)
    assert (answer.error, answer.kind) == ("FencedError", "fenced")


def test_second_run_of_one_command_is_refused(node: Node, tmp_path: Path) -> None:
    node.join()
    _, answer = node.join(uri=str(tmp_path / "other"))
    assert isinstance(answer, Refused)
    assert (answer.error, answer.kind) == ("ConfigError", "second-run")


def test_other_protocol_is_refused(node: Node) -> None:
    _, answer = node.join(protocol=99)
    assert isinstance(answer, Refused)
    assert answer.kind == "protocol"
    assert node.session.heard().refused == answer


def test_stop_reaches_every_trainer_also_one_that_comes_later(node: Node) -> None:
    assert not node.session.stop(STOP)
    late, answer = node.join()
    assert isinstance(answer, Welcome)
    assert next(late.messages) == STOP
    earlier = Stop("sigterm", "now", 1_900_000_000.0)
    assert node.session.stop(earlier)
    assert next(late.messages) == earlier


def test_advice_reaches_connected_trainers(node: Node) -> None:
    trainer, _ = node.join()
    node.until(Admitted)
    node.session.advise(Advice("ec2", "rebalance"))
    assert next(trainer.messages) == Advice("ec2", "rebalance")


def test_what_trainers_say_is_passed_on(node: Node) -> None:
    trainer, _ = node.join(rank=1)
    channel = trainer.channel
    channel.send(Committed(7, 0.5, 0.1, 100))
    assert node.until(Told) == Told(1, Committed(7, 0.5, 0.1, 100))
    channel.close()
    node.until(Departed)
    assert not node.session.connected()


def test_nonsense_on_the_link_is_said_and_harms_nobody_else(node: Node) -> None:
    sound, _ = node.join()
    broken = connect(node.path, timeout=10)
    node.channels.append(broken)
    broken._socket.sendall(b"nonsense\n")
    trouble = node.until(Trouble)
    assert isinstance(trouble, Trouble)
    assert "is no message of the link" in trouble.text
    sound.channel.send(Committed(1, 0.0, 0.0, 0))
    node.until(Told)


def test_journal_facts_tell_own_commits_from_earlier_ones(node: Node) -> None:
    run = Journal.create(open_store(node.uri, create=True))
    earlier = run.claim(Origin("here", 9))
    run.append(CheckpointCommitted(5, "m5", "0" * 64, 1, 1), Origin("here", 9), earlier)
    node.join()
    future = node.session.ask_journal(1.0)
    assert future is not None
    facts = future.result(10)
    assert (facts.durable_step, facts.committed, facts.without_progress) == (5, False, 1)
    claim = node.session.claim
    assert claim is not None
    claim.append(CheckpointCommitted(6, "m6", "0" * 64, 1, 1))
    assert node.session.last_known().committed


def test_fenced_record_is_posted_and_remembered(node: Node) -> None:
    node.join()
    journal(node).claim(Origin("elsewhere", 9))
    future = node.session.record(Note("test", "too late"))
    assert future is not None
    future.result(10)
    fenced = node.until(Fenced)
    assert isinstance(fenced, Fenced)
    assert fenced.attempt == 1
    assert node.session.heard().fenced


def test_announced_slot_is_committed_and_known_to_be_durable(node: Node, stager: Any) -> None:
    trainer, answer = node.join()
    assert isinstance(answer, Welcome)
    slot = Slot.create(0)
    stager.fill(slot, SlotOwner(node.uri, answer.attempt, answer.claim), 4)
    trainer.channel.send(Restored(0, 0.0, 0))
    trainer.channel.send(SlotOffered(0), slot.descriptor)
    trainer.channel.send(Sealed(0, 4))
    slot.close()
    committed = next(trainer.messages)
    assert isinstance(committed, SlotCommitted)
    assert committed.event == journal(node).state.checkpoints[-1].event
    assert isinstance(node.until(Durable), Durable)
    assert node.session.heard().committed_step == 4
    node.until(Woken)
    assert node.session.unsaved() == ()


def test_slot_that_was_never_offered_is_a_failed_save(node: Node) -> None:
    trainer, _ = node.join()
    trainer.channel.send(Sealed(3, 4))
    failure = next(trainer.messages)
    assert isinstance(failure, SlotFailed)
    assert (failure.slot, failure.step, failure.kind) == (3, 4, "slot")


def test_offer_without_a_descriptor_breaks_the_protocol(node: Node) -> None:
    trainer, _ = node.join()
    trainer.channel.send(SlotOffered(0))
    trouble = node.until(Trouble)
    assert isinstance(trouble, Trouble)
    assert "without its descriptor" in trouble.text


def test_memory_of_a_finished_training_is_let_go_and_that_of_any_other_kept(node: Node) -> None:
    for outcome, kept in (("left", 1), ("finished", 0)):
        trainer, _ = node.join()
        if not node.arena.count(trainer.channel):
            slot = Slot.create(0)
            trainer.channel.send(SlotOffered(0), slot.descriptor)
            slot.close()
        trainer.channel.send(Bye(outcome, 4))
        while not (isinstance(told := node.until(Told), Told) and isinstance(told.message, Bye)):
            pass
        trainer.channel.close()
        node.until(Departed)
        assert sum(len(held) for held in node.arena._ranks.values()) == kept, outcome
