"""Who has which slot, and that no descriptor outlives the arena."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unbroken.agent.arena import Arena
from unbroken.link.arena import Slot, SlotOwner

OWNER = SlotOwner("/run", 1, "c")


@pytest.fixture
def arena() -> Iterator[Arena]:
    before = count_slots()
    arena = Arena()
    yield arena
    arena.close()
    assert count_slots() == before


def count_slots() -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += "unbroken-slot" in str(link.readlink())
        except FileNotFoundError:
            continue
    return found


def offer(arena: Arena, trainer: object, number: int, rank: int = 0) -> None:
    slot = Slot.create(number)
    arena.offer(trainer, rank, number, os.dup(slot.descriptor))
    slot.close()


def test_slots_of_a_trainer_that_is_gone_go_to_the_next_of_its_rank(arena: Arena) -> None:
    old, other, new = object(), object(), object()
    offer(arena, old, 0)
    offer(arena, old, 1)
    offer(arena, other, 0, rank=1)
    assert [slot.number for slot in arena.inherit(new, 0)] == [0, 1]
    assert (arena.count(old), arena.count(new), arena.count(other)) == (0, 2, 1)
    assert arena.take(old, 0, 0) is None


def test_slot_that_is_still_read_is_not_returned(arena: Arena) -> None:
    old = object()
    offer(arena, old, 0)
    offer(arena, old, 1)
    taken = arena.take(old, 0, 0)
    assert taken is not None
    assert [slot.number for slot in arena.inherit(object(), 0)] == [1]
    arena.give_back(taken, "")
    assert [slot.number for slot in arena.inherit(object(), 0)] == [0, 1]


def test_memory_of_its_own_lets_what_was_returned_go(arena: Arena) -> None:
    before = count_slots()
    old, new = object(), object()
    offer(arena, old, 0)
    offer(arena, old, 1)
    arena.inherit(new, 0)
    offer(arena, new, 0)
    assert arena.count(new) == 1
    assert count_slots() == before + 1


def test_returned_slots_may_be_used_without_a_word_or_offered_again(arena: Arena) -> None:
    old, new = object(), object()
    offer(arena, old, 0)
    offer(arena, old, 1)
    returned = arena.inherit(new, 0)
    arena.offer(new, 0, 1, os.dup(returned[1].descriptor))
    taken = arena.take(new, 0, 0)
    assert taken is not None
    arena.give_back(taken, "")
    offer(arena, new, 2)  # a third one, and no reason to close the two
    assert arena.count(new) == 3


def test_slots_that_were_not_returned_are_closed_when_others_come(arena: Arena) -> None:
    before = count_slots()
    old, new = object(), object()
    offer(arena, old, 0)
    taken = arena.take(old, 0, 0)
    assert taken is not None
    offer(arena, new, 1)
    os.fstat(taken.descriptor)  # whoever reads it has a descriptor of its own
    arena.give_back(taken, "")
    assert count_slots() == before + 1


def test_slot_names_the_checkpoint_that_it_holds_until_it_is_written_to(arena: Arena, stager: Any) -> None:
    trainer, slot = object(), Slot.create(0)
    stager.fill(slot, OWNER, 3)
    arena.offer(trainer, 0, 0, os.dup(slot.descriptor))
    taken = arena.take(trainer, 0, 0)
    assert taken is not None
    arena.give_back(taken, "manifests/3.json")
    (returned,) = arena.inherit(object(), 0)
    assert returned.manifest == "manifests/3.json"
    slot.unseal()
    (returned,) = arena.inherit(object(), 0)
    assert returned.manifest == ""
    slot.close()


def test_memory_of_a_trainer_that_has_finished_goes_but_for_what_is_still_read(arena: Arena) -> None:
    before = count_slots()
    finished, other = object(), object()
    offer(arena, finished, 0)
    offer(arena, finished, 1)
    offer(arena, other, 0, rank=1)
    taken = arena.take(finished, 0, 1)
    assert taken is not None
    arena.forget(finished)
    assert (arena.count(finished), arena.count(other)) == (1, 1)
    arena.give_back(taken, "")
    arena.forget(finished)
    assert (arena.count(finished), arena.count(other)) == (0, 1)
    assert count_slots() == before + 1
