"""The slots of a trainer's arena: how many memory allows, which is free, and how they grow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from unbroken.link.arena import Slot
from unbroken.size import size_text
from unbroken.training.memory import Room, host_room, kept_back, slots_that_fit
from unbroken.training.prefault import Prefault

_SLOTS = 2
_NEGLIGIBLE = 16 << 20
"""Bytes that are taken without asking whether the host has them."""
_ASK_EVERY = 64 << 20
"""Bytes between two looks at the host's memory while slots are touched."""


class SlotPool:
    """Slots, none of which is given out again before it was given back.

    Args:
        say: told what people should know of the memory.
        touched: called, in a thread, with each slot that is all there.
        leaving: called before a slot's memory moves or goes.
        room: how much memory may be taken.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        touched: Callable[[Slot], None],
        leaving: Callable[[Slot], None],
        room: Callable[[], Room] = host_room,
    ) -> None:
        self._say = say
        self._touched = touched
        self._leaving = leaving
        self._room = room
        self._lock = threading.Lock()
        self._slots: list[Slot] = []
        self._free: list[Slot] = []
        self._prefault: Prefault | None = None
        self._unasked = 0
        self.streaming = False
        """Whether the host has no memory for a slot."""

    @property
    def slots(self) -> list[Slot]:
        """All that there are."""
        with self._lock:
            return list(self._slots)

    def prepare(self, size: int, growth: int, adopted: Sequence[Slot]) -> None:
        """Make slots, and begin to touch them.

        Args:
            size: bytes of the state.
            growth: bytes that the training will add to the state, and take for that itself.
            adopted: slots of an earlier trainer; what they hold stays until one is reserved.
        """
        slots = sorted(adopted, key=lambda slot: slot.held, reverse=True)
        held = [slot.held for slot in slots[:_SLOTS]] + [0] * (_SLOTS - len(slots))
        room = self._room()
        count = slots_that_fit([max(0, size + growth - there) for there in held], size + growth, room.size - growth)
        for slot in slots[count:]:
            slot.discard()
        self._slots = slots[:count]
        why = _left(room)
        try:
            self._make(count - len(self._slots))
            for slot in self._slots:
                slot.make_room(size + growth)
        except (MemoryError, OSError) as error:  # a system without memfd, or without descriptors
            why = str(error)
            self._drop_all(discard=True)
        self._free = list(self._slots)
        self._say_mode(size + growth, why)
        self._start_prefault()

    def take(self) -> Slot | None:
        """A free slot, the one with most memory first; None while all are under way."""
        with self._lock:
            self._free.sort(key=lambda slot: slot.held)
            return self._free.pop() if self._free else None

    def give_back(self, slot: Slot) -> None:
        """What ``slot`` held may be overwritten from now on."""
        with self._lock:
            if slot in self._slots and slot not in self._free:
                self._free.append(slot)

    def reserve(self, slot: Slot, size: int) -> memoryview:
        """Room for ``size`` bytes in a slot that was taken, to be written to.

        Raises:
            MemoryError: the host has not so much.
        """
        if not slot.fits(size):
            if self._prefault is not None:  # it must not meet memory that moves
                self._prefault.close()
            self._leaving(slot)
        self._demand(slot, size)
        return slot.reserve(size)

    def close(self) -> None:
        """End the thread that touches, and give the slots back. Views of them stay valid until they are dropped."""
        if self._prefault is not None:
            self._prefault.close()
        self._drop_all(discard=False)

    def wait_until_touched(self, seconds: float) -> bool:
        """Whether touching is over within ``seconds``."""
        return self._prefault is None or self._prefault.wait(seconds)

    def _make(self, count: int) -> None:
        taken = {slot.number for slot in self._slots}
        free = [number for number in range(_SLOTS + len(taken)) if number not in taken]
        self._slots += [Slot.create(number) for number in free[:count]]

    def _say_mode(self, state: int, why: str) -> None:
        if not self._slots:
            self.streaming = True
            self._say(
                f"no memory for a copy of the state ({size_text(state)}; {why}): "
                "the training stands still while a checkpoint is uploaded"
            )
        elif len(self._slots) < _SLOTS:
            self._say(
                f"memory for one copy of the state only ({size_text(state)}; {why}): a save waits for the one before"
            )

    def _start_prefault(self) -> None:
        untouched = [slot for slot in self._slots if slot.held < slot.size]
        if untouched:
            self._prefault = Prefault(untouched, self._enough, self._touched)
            self._prefault.start()

    def _enough(self, size: int) -> bool:
        """Asked in the prefaulting thread."""
        self._unasked -= size
        if self._unasked > 0:
            return True
        self._unasked = _ASK_EVERY
        return self._room().size > _ASK_EVERY + kept_back(0)

    def _demand(self, slot: Slot, size: int) -> None:
        """See that the host has what ``slot`` still lacks, by giving up another slot if that helps."""
        missing = size - slot.held
        if missing <= _NEGLIGIBLE:
            return
        room = self._room()
        if missing + kept_back(size) <= room.size:
            return
        alone = self._discard_free()
        after = self._room()
        if missing + kept_back(size) <= after.size:
            self._say_mode(size, f"{room.bound} left {size_text(room.size)}")
            return
        if alone:  # no other one is there that could be given up later
            self._drop_all(discard=True)
            self._say_mode(size, _left(after))
        raise MemoryError(f"a copy of the state takes {size_text(missing)} more, and {_left(after)}")

    def _discard_free(self) -> bool:
        """Let every free slot go; whether only the one that asks is left."""
        if self._prefault is not None:
            self._prefault.close()
        with self._lock:
            free, self._free = self._free, []
            self._slots = [slot for slot in self._slots if slot not in free]
            alone = len(self._slots) == 1
        for slot in free:
            self._drop(slot, discard=True)
        return alone

    def _drop_all(self, *, discard: bool) -> None:
        with self._lock:
            slots, self._slots, self._free = self._slots, [], []
        for slot in slots:
            self._drop(slot, discard=discard)

    def _drop(self, slot: Slot, *, discard: bool) -> None:
        """Without ``discard`` the memory stays for as long as the agent holds it, too: for its uploads, and for the
        next trainer."""
        self._leaving(slot)
        if discard:
            slot.discard()
        else:
            slot.close()


def _left(room: Room) -> str:
    return f"{room.bound} leaves {size_text(max(0, room.size))}"
