"""Memory that is given up is the system's again, also where an agent holds the descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from unbroken.link.arena import Slot, read_slot
from unbroken.training.memory import Room
from unbroken.training.slots import SlotPool

MB = 1 << 20
PLENTY = 1 << 50


class Node:
    """A pool, and an agent that holds the descriptors of all slots that it ever saw."""

    def __init__(self) -> None:
        self.budget = PLENTY
        """Bytes of the host, but for what the slots hold."""
        self.said: list[str] = []
        self.pool = SlotPool(say=self.said.append, touched=lambda _: None, leaving=lambda _: None, room=self.room)
        self.descriptors: list[int] = []

    def prepare(self, size: int, adopted: tuple[Slot, ...] = ()) -> None:
        self.pool.prepare(size, 0, adopted)
        assert self.pool.wait_until_touched(30)
        self.descriptors += [os.dup(slot.descriptor) for slot in self.pool.slots]

    def room(self) -> Room:
        return Room(self.budget - sum(os.fstat(number).st_blocks * 512 for number in self.descriptors), "the box")

    def held(self) -> list[bool]:
        """Whether there is memory behind each slot that the agent holds."""
        return [os.fstat(descriptor).st_blocks > 0 for descriptor in self.descriptors]

    def close(self) -> None:
        self.pool.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


def test_slot_given_up_for_another_gives_its_memory_back(node: Node) -> None:
    node.prepare(40 * MB)
    slot = node.pool.take()
    assert slot is not None
    node.budget = 355 * MB
    node.pool.reserve(slot, 80 * MB)
    assert node.pool.slots == [slot]
    assert sorted(node.held()) == [False, True]
    assert "one copy of the state only" in node.said[-1]


def test_last_slot_gives_its_memory_back_where_it_cannot_grow(node: Node) -> None:
    node.prepare(8 * MB)
    slot = node.pool.take()
    assert slot is not None
    node.budget = 0
    with pytest.raises(MemoryError):
        node.pool.reserve(slot, 200 * MB)
    assert node.held() == [False, False]
    assert node.pool.streaming


def test_slots_of_an_earlier_trainer_for_which_there_is_no_room_give_theirs_back(node: Node) -> None:
    adopted = tuple(Slot.create(number) for number in range(2))
    for slot in adopted:
        slot.make_room(8 * MB)
        slot.touch(0, 8 * MB)
    node.descriptors = [os.dup(slot.descriptor) for slot in adopted]
    node.budget = 0
    node.pool.prepare(400 * MB, 0, adopted)
    assert node.pool.streaming
    assert node.held() == [False, False]


def test_closing_the_pool_leaves_the_agent_what_was_staged(node: Node) -> None:
    node.prepare(8 * MB)
    node.pool.close()
    assert node.held() == [True, True]


def test_discarded_slot_is_neither_sealed_nor_a_trap_for_its_readers() -> None:
    slot = Slot.create(0)
    slot.reserve(MB)[:3] = b"abc"
    descriptor = os.dup(slot.descriptor)
    try:
        slot.discard()
        slot.discard()
        assert os.fstat(descriptor).st_blocks == 0
        assert read_slot(descriptor) is None
        heir = Slot(0, os.dup(descriptor))
        assert bytes(heir.reserve(MB)[:3]) == b"\0\0\0"
        heir.close()
    finally:
        os.close(descriptor)
