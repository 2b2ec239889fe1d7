"""Memory is there before the first save, also where the training leaves no core idle."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from unbroken.link.arena import PAGE, Slot
from unbroken.training.prefault import Prefault

MB = 1 << 20


@pytest.fixture
def slots() -> Iterator[list[Slot]]:
    made = [Slot.create(number) for number in range(2)]
    for slot in made:
        slot.make_room(9 * MB)
    yield made
    for slot in made:
        slot.close()


def test_slots_are_touched_whole_in_their_order_and_at_the_trainings_own_priority(slots: list[Slot]) -> None:
    seen: list[tuple[int, bool, bool]] = []

    def then(slot: Slot) -> None:
        behind = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        # but for the header, which is the seal's
        seen.append(
            (slot.number, slot.held >= slot.size - PAGE, behind == os.getpriority(os.PRIO_PROCESS, os.getpid()))
        )

    prefault = Prefault(slots, lambda _: True, then)
    prefault.start()
    assert prefault.wait(30)
    assert seen == [(0, True, True), (1, True, True)]


def test_touching_ends_where_the_host_has_no_more(slots: list[Slot]) -> None:
    asked: list[int] = []
    whole: list[Slot] = []
    prefault = Prefault(slots, lambda size: bool(asked.append(size)) or len(asked) < 3, whole.append)
    prefault.start()
    assert prefault.wait(30)
    assert len(asked) == 3
    assert whole == []
    assert 0 < slots[0].held < slots[0].size
    assert slots[1].held == 0
