"""Saves that the agent makes durable: what it is told, what its answers do, and who goes on when it is gone."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from unbroken.checkpoint import CheckpointWriter, HostState, HostTensor, load_manifest, read_tensors
from unbroken.clock import SYSTEM_CLOCK
from unbroken.errors import FencedError, StoreError
from unbroken.journal import Journal, Lease, Origin
from unbroken.journal.events import CheckpointCommitted
from unbroken.link.arena import Slot, SlotOwner, layout, read_slot
from unbroken.link.channel import Channel, listen
from unbroken.link.messages import (
    SOCKET_VARIABLE,
    Bye,
    Committed,
    Hello,
    Message,
    Restored,
    Sealed,
    SlotCommitted,
    SlotFailed,
    SlotOffered,
    Welcome,
)
from unbroken.store import open_store
from unbroken.training.agent_link import AgentLink
from unbroken.training.local_writer import LocalWriter
from unbroken.training.remote_writer import RemoteWriter
from unbroken.training.saver import PendingSave

ORIGIN = Origin("host", 1)
CONTENT = bytes(range(100))


class FakeAgent:
    """Accepts one trainer at a time and does only what a test says."""

    def __init__(self, path: Path, attempt: int, claim: str) -> None:
        self.path = path
        self.descriptors: dict[int, int] = {}
        self._welcome = Welcome(attempt, claim)
        self._server = listen(path)
        self._server.settimeout(20)
        self._greeted = threading.Event()
        self._thread = threading.Thread(target=self._greet, daemon=True)
        self._thread.start()

    def _greet(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:  # closed before anybody came
            return
        connection.settimeout(20)
        self.channel = Channel(connection)
        self._messages = self.channel.messages()
        self.hello = next(self._messages)
        self.channel.send(self._welcome)
        self._greeted.set()

    def heard(self) -> Message:
        """The trainer's next message."""
        assert self._greeted.wait(20)
        message = next(self._messages)
        if isinstance(message, SlotOffered):
            self.descriptors[message.slot] = self.channel.take_descriptor()
        return message

    def die(self) -> None:
        assert self._greeted.wait(20)
        self.channel.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self._server.close()
        if self._greeted.is_set():
            self.channel.close()
        for descriptor in self.descriptors.values():
            os.close(descriptor)


class World:
    """A run, an attempt of it, a first agent, and a writer that is linked to it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.uri = str(folder / "run")
        self.journal = Journal.create(open_store(self.uri, create=True))
        self.lease: Lease = self.journal.claim(ORIGIN)
        self.agents = [self.agent()]
        self.replacements: list[FakeAgent | None] = []
        monkeypatch.setenv(SOCKET_VARIABLE, str(self.agents[0].path))
        monkeypatch.setattr(AgentLink, "_start_agent", lambda _: self._replacement())
        monkeypatch.setattr("unbroken.training.agent_link._REPLACEMENTS", 1)
        self.link = AgentLink(self.uri, clock=SYSTEM_CLOCK)
        self.link.open()
        self.writer = RemoteWriter(self.link, self._local, clock=SYSTEM_CLOCK)
        self.slots = [Slot.create(0), Slot.create(1)]
        self.released: list[int] = []

    def agent(self) -> FakeAgent:
        path = Path(self.folder, f"agent-{os.urandom(3).hex()}.sock")
        return FakeAgent(path, self.lease.attempt, self.lease.claim)

    def replace_by(self, *agents: FakeAgent | None) -> None:
        """Who comes when the agent is gone; None: nobody can be started."""
        self.replacements = list(agents)
        self.agents += [agent for agent in agents if agent is not None]

    def _replacement(self) -> Path:
        agent = self.replacements.pop(0) if self.replacements else None
        if agent is None:
            raise OSError("no more processes")
        return agent.path

    def _local(self) -> LocalWriter:
        return LocalWriter(self.journal, self.lease, ORIGIN, clock=SYSTEM_CLOCK)

    def staged(self, step: int, slot: int = 0, content: bytes = CONTENT) -> PendingSave:
        """A save whose state is sealed in a slot."""
        starts, size = layout([len(content)])
        room = self.slots[slot].reserve(size)
        room[: len(content)] = content
        tensors = [HostTensor("x", "uint8", (len(content),), room[: len(content)])]
        state = HostState(step, {"x": {"$tensor": "x"}}, tensors)
        self.slots[slot].seal(SlotOwner(self.uri, self.lease.attempt, self.lease.claim), state, starts)
        return PendingSave(step, lambda: self.released.append(slot), self.slots[slot], state)

    def written(self, pending: PendingSave) -> tuple[threading.Thread, list[CheckpointCommitted | Exception]]:
        """The outcome of ``write``, once the thread that waits for it has ended."""
        outcome: list[CheckpointCommitted | Exception] = []

        def write() -> None:
            try:
                outcome.append(self.writer.write(pending))
            except Exception as error:  # noqa: BLE001 - looked at by the test
                outcome.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        return thread, outcome

    def outcome(self, pending: PendingSave) -> CheckpointCommitted | Exception:
        thread, outcome = self.written(pending)
        thread.join(20)
        return outcome[0]

    def stored(self, event: CheckpointCommitted) -> bytes:
        self.journal.refresh()
        record = next(r for r in self.journal.state.commits if r.event == event)
        manifest = load_manifest(self.journal.store, record)
        return bytes(read_tensors(self.journal.store, manifest)["x"])

    def close(self) -> None:
        self.writer.hurry()
        self.link.close(Bye("left", 0))
        for slot in self.slots:
            slot.close()
        for agent in self.agents:
            agent.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.close()


def committed(step: int) -> CheckpointCommitted:
    return CheckpointCommitted(step, f"manifests/{step}.json", "aa", 100, 100)


def test_a_staged_state_is_announced_before_anybody_waits_for_it(world):
    world.writer.announce(world.staged(3))
    agent = world.agents[0]
    assert agent.heard() == SlotOffered(0)
    assert agent.heard() == Sealed(0, 3)
    owner, state = read_slot(agent.descriptors[0])
    assert (owner.attempt, state.step, bytes(state.tensors[0].data)) == (1, 3, CONTENT)


def test_the_agents_commit_is_the_writers(world):
    pending = world.staged(3)
    world.writer.announce(pending)
    world.agents[0].channel.send(SlotCommitted(0, committed(3)))
    assert world.outcome(pending) == committed(3)


def test_all_slots_are_offered_before_the_first_save_and_to_each_agent(world):
    world.writer.offer(world.slots)
    assert [world.agents[0].heard() for _ in range(2)] == [SlotOffered(0), SlotOffered(1)]
    another = world.agent()
    world.replace_by(another)
    world.agents[0].die()
    assert [another.heard() for _ in range(3)] == [Restored(0, 0.0, 0), SlotOffered(0), SlotOffered(1)]


def test_a_slot_is_offered_once_and_announced_each_time(world):
    agent = world.agents[0]
    for step in (3, 4):
        pending = world.staged(step)
        world.writer.announce(pending)
        agent.channel.send(SlotCommitted(0, committed(step)))
        assert world.outcome(pending) == committed(step)
    assert [agent.heard() for _ in range(3)] == [SlotOffered(0), Sealed(0, 3), Sealed(0, 4)]


@pytest.mark.parametrize(("name", "kind"), [("FencedError", FencedError), ("StoreError", StoreError)])
def test_what_the_agent_met_is_raised_here_as_the_same_class(world, name, kind):
    pending = world.staged(3)
    world.writer.announce(pending)
    world.agents[0].channel.send(SlotFailed(0, 3, name, "no", "why", "do"))
    error = world.outcome(pending)
    assert type(error) is kind
    assert (error.message, error.kind, error.hint) == ("no", "why", "do")


@pytest.mark.parametrize(
    "stale",
    [
        SlotCommitted(0, CheckpointCommitted(3, "manifests/3.json", "aa", 100, 100)),
        SlotFailed(0, 3, "StoreError", "no"),
    ],
    ids=["committed", "failed"],
)
def test_a_stale_answer_for_an_earlier_step_does_not_release_the_slots_newer_save(world, stale):
    pending = world.staged(4)
    world.writer.announce(pending)
    world.agents[0].channel.send(stale)
    world.agents[0].channel.send(SlotCommitted(0, committed(4)))
    assert world.outcome(pending) == committed(4)


def test_an_agent_that_replaces_one_lost_before_anybody_followed_the_link_is_told_the_parent(world, monkeypatch):
    lost, may_come, start = threading.Event(), threading.Event(), AgentLink._start_agent

    def start_later(link: AgentLink) -> Path:
        lost.set()
        assert may_come.wait(20)
        return start(link)

    monkeypatch.setattr(AgentLink, "_start_agent", start_later)
    another = world.agent()
    world.replace_by(another)
    world.agents[0].die()
    assert lost.wait(20)
    world.writer = RemoteWriter(world.link, world._local, clock=SYSTEM_CLOCK)
    world.writer.announce(world.staged(3))
    may_come.set()
    assert [another.heard() for _ in range(3)] == [Restored(0, 0.0, 0), SlotOffered(0), Sealed(0, 3)]


def test_a_new_agent_is_told_the_parent_and_all_that_is_not_answered(world):
    first, second, third = world.staged(3, 0), world.staged(4, 1), None
    world.writer.announce(first)
    world.agents[0].channel.send(SlotCommitted(0, committed(3)))
    assert world.outcome(first) == committed(3)
    third = world.staged(5, 0)
    world.writer.announce(second)
    world.writer.announce(third)
    another = world.agent()
    world.replace_by(another)
    world.agents[0].die()
    assert [another.heard() for _ in range(5)] == [
        Restored(3, 0.0, 100, "manifests/3.json"), SlotOffered(0), SlotOffered(1), Sealed(1, 4), Sealed(0, 5),
    ]  # fmt: skip
    assert isinstance(another.hello, Hello)
    assert (another.hello.attempt, another.hello.claim) == (world.lease.attempt, world.lease.claim)
    another.channel.send(SlotCommitted(1, committed(4)))
    another.channel.send(SlotCommitted(0, committed(5)))
    assert [world.outcome(second), world.outcome(third)] == [committed(4), committed(5)]


def test_without_an_agent_this_process_writes_what_the_lost_one_had_not(world):
    pending = world.staged(3)
    world.writer.announce(pending)
    thread, outcome = world.written(pending)
    world.agents[0].die()
    thread.join(20)
    assert isinstance(outcome[0], CheckpointCommitted)
    assert world.stored(outcome[0]) == CONTENT


def test_without_an_agent_a_commit_whose_reply_was_lost_is_not_written_again(world):
    pending = world.staged(3)
    world.writer.announce(pending)
    event = CheckpointWriter(Journal.open(world.journal.store), world.lease, ORIGIN).write(pending.state)
    world.agents[0].die()
    assert world.outcome(pending) == event
    world.journal.refresh()
    assert [record.step for record in world.journal.state.commits] == [3]


def test_without_an_agent_the_parent_is_the_newest_commit_of_this_attempt(world):
    event = CheckpointWriter(Journal.open(world.journal.store), world.lease, ORIGIN).write(world.staged(2).state)
    pending = world.staged(3)
    world.writer.announce(pending)
    world.agents[0].die()
    found = world.outcome(pending)
    assert isinstance(found, CheckpointCommitted)
    assert found.parent == event.manifest
    assert found.written < len(CONTENT) + event.written  # the same tensor is not written twice
    assert world.stored(found) == CONTENT


def test_an_agent_that_comes_back_to_one_who_writes_alone_hears_of_the_commits(world):
    pending = PendingSave(3, lambda: None, None, world.staged(3).state)
    event = world.outcome(pending)
    assert isinstance(event, CheckpointCommitted)
    heard = world.agents[0].heard()
    assert heard == Committed(3, event.seconds, event.stall, event.written)


def test_whoever_hurries_gives_up_and_never_gives_back_what_may_be_read(world):
    pending = world.staged(3)
    world.writer.announce(pending)
    thread, outcome = world.written(pending)
    world.writer.hurry()
    thread.join(20)
    assert isinstance(outcome[0], StoreError)
    pending.release()
    assert world.released == []


def test_an_answer_that_nobody_waits_for_is_passed_over(world):
    world.agents[0].channel.send(SlotCommitted(1, committed(9)))
    pending = world.staged(3)
    world.writer.announce(pending)
    world.agents[0].channel.send(SlotCommitted(0, committed(3)))
    assert world.outcome(pending) == committed(3)
