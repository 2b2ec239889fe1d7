"""Nodes with several trainers each, in one process: real sockets, real slots, a real journal in a folder."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unbroken.agent.arena import Arena
from unbroken.agent.claims import Claims
from unbroken.agent.events import Event
from unbroken.agent.session import Session
from unbroken.checkpoint import HostState, HostTensor, TensorRef, encode_tree
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.journal import Journal, Lease, Origin
from unbroken.link.arena import Slot, SlotOwner, layout
from unbroken.link.channel import Channel, connect
from unbroken.link.messages import (
    PROTOCOL,
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

SIZE = 1000


def part(step: int, rank: int, world_size: int, *, shared: str = "same") -> HostState:
    """What one rank has of a step: its share of ``weight``, all of what is frozen where it is rank 0, and a number of
    its own."""
    data = memoryview(bytes([(step + rank) % 251]) * SIZE)
    tensors = [HostTensor("weight", "uint8", (SIZE,), data, (rank * SIZE,), (world_size * SIZE,))]
    if rank == 0:
        tensors.append(HostTensor("frozen", "uint8", (SIZE,), memoryview(b"\7" * SIZE)))
    return HostState(
        step, encode_tree({"model": {"weight": TensorRef("weight"), "frozen": TensorRef("frozen")}}), tensors,
        rank=rank, world_size=world_size, local=encode_tree({"rng": rank}), shared={"model": shared},
    )  # fmt: skip


@dataclass
class RankTrainer:
    """A trainer's end of the link."""

    uri: str
    rank: int
    world_size: int
    channel: Channel
    messages: Iterator[Message]
    answer: Message
    slots: dict[int, Slot] = field(default_factory=dict)

    @property
    def lease(self) -> Lease:
        assert isinstance(self.answer, Welcome), self.answer
        return Lease(self.answer.attempt, self.answer.claim)

    def stage(self, step: int, number: int, **state: Any) -> None:
        slot = self.slots.get(number) or Slot.create(number)
        given = {"rank": self.rank, "world_size": self.world_size, **state}
        staged = part(step, **given)
        starts, length = layout([len(tensor.data) for tensor in staged.tensors])
        room = slot.reserve(length)
        for tensor, start in zip(staged.tensors, starts, strict=True):
            room[start : start + len(tensor.data)] = tensor.data
        slot.seal(SlotOwner(self.uri, self.lease.attempt, self.lease.claim), staged, starts)
        if number not in self.slots:
            self.offer(slot)

    def offer(self, slot: Slot) -> None:
        self.slots[slot.number] = slot
        self.channel.send(SlotOffered(slot.number), slot.descriptor)

    def save(self, step: int, number: int = 0, **state: Any) -> None:
        self.stage(step, number, **state)
        self.channel.send(Sealed(number, step))

    def hear(self) -> Message:
        return next(self.messages)

    def committed(self) -> SlotCommitted:
        heard = self.hear()
        assert isinstance(heard, SlotCommitted), heard
        return heard

    def failure(self) -> SlotFailed:
        heard = self.hear()
        assert isinstance(heard, SlotFailed), heard
        return heard


class RankNode:
    """An agent's session and its trainers."""

    def __init__(self, folder: Path, uri: str, *, clock: Clock = SYSTEM_CLOCK, upload_patience: float = 10.0) -> None:
        self.uri = uri
        self.path = folder / "agent.sock"
        folder.mkdir()
        self.events: queue.Queue[Event] = queue.Queue()
        self.arena = Arena()
        claims = Claims(Origin(folder.name, os.getpid()), ["train"], 5, clock)
        self.claims = claims
        self.session = Session(self.path, claims, self.arena, self.events.put, clock, upload_patience=upload_patience)
        self.trainers: list[RankTrainer] = []

    def hello(self, **fields: Any) -> RankTrainer:
        """Connect a trainer that says this."""
        channel = connect(self.path, timeout=10)
        channel._socket.settimeout(20)  # a message that does not come ends the iterator instead of hanging
        given = {"protocol": PROTOCOL, "uri": self.uri, "pid": 100 + len(self.trainers), **fields}
        hello = Hello(**given)
        channel.send(hello)
        messages = channel.messages()
        trainer = RankTrainer(self.uri, hello.rank, hello.world_size, channel, messages, next(messages))
        self.trainers.append(trainer)
        return trainer

    def join(self, rank: int, world_size: int, lease: Lease | None = None, **fields: Any) -> RankTrainer:
        """A trainer that trains: rank 0 without a lease begins the attempt."""
        if lease is not None:
            fields = {"attempt": lease.attempt, "claim": lease.claim, "joining": True, **fields}
        trainer = self.hello(rank=rank, world_size=world_size, **fields)
        assert isinstance(trainer.answer, Welcome), trainer.answer
        for _ in range(trainer.answer.slots):
            next(trainer.messages)
            os.close(trainer.channel.take_descriptor())
        trainer.channel.send(Restored(0, 0.0, 0))
        return trainer

    def gather(self, parts: int) -> None:
        """Wait until as many ranks wait for the commit of one step."""
        deadline = time.monotonic() + 20
        gathering = self.session._uploader._gathering
        while not any(len(save.parts) == parts for save in list(gathering._saves.values())):
            assert time.monotonic() < deadline, f"{parts} parts did not come"
            time.sleep(0.01)

    def until(self, kind: type) -> Any:
        while not isinstance(event := self.events.get(timeout=20), kind):
            pass
        return event

    def journal(self) -> Journal:
        return Journal.open(open_store(self.uri))

    def steps(self) -> list[int]:
        """Of the commits, in their order."""
        return [record.step for record in self.journal().state.commits]

    def close(self) -> None:
        for trainer in self.trainers:
            trainer.channel.close()
            for slot in trainer.slots.values():
                slot.close()
        self.session.close(10)
        self.arena.close()
