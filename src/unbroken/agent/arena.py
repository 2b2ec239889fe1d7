"""The memory of this node's trainers, as far as the agent holds it: it outlives each of them."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

from unbroken.link.arena import read_sequence


@dataclass
class HeldSlot:
    """A slot whose descriptor the agent has."""

    number: int
    descriptor: int
    trainer: object
    """Who writes to it: whoever offered it, or got it back."""
    inherited: bool = False
    """Whether it was returned to its trainer, who has not yet said that it uses it."""
    busy: int = 0
    """Uploads that wait for it or read it."""
    manifest: str = ""
    """Key of the checkpoint that was committed from it last."""
    sequence: int = 0
    """Of the slot, at that commit."""

    def holds(self) -> str:
        """Key of the committed checkpoint that it holds now; "" where it was written to since."""
        return self.manifest if self.manifest and read_sequence(self.descriptor) == self.sequence else ""


@dataclass(frozen=True)
class Taken:
    """A slot that an upload needs, with a descriptor of its own: it stays readable whatever becomes of the slot."""

    slot: HeldSlot
    descriptor: int


@dataclass(frozen=True)
class Returned:
    """A slot for a new trainer. The descriptor stays the arena's."""

    number: int
    descriptor: int
    manifest: str


@dataclass
class Arena:
    """The slots of all ranks, across the starts of a command. All methods are safe from any thread."""

    _ranks: dict[int, dict[int, HeldSlot]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, trainer: object, rank: int, number: int, descriptor: int) -> None:
        """Keep a slot of ``trainer``, whose descriptor is the arena's from now on.

        A trainer that offers memory of its own where it was given some has no use for what it was given.
        """
        with self._lock:
            held = self._ranks.setdefault(rank, {})
            known = held.get(number)
            if known is not None and known.trainer is trainer and os.path.sameopenfile(known.descriptor, descriptor):
                os.close(descriptor)
                known.inherited = False
                return
            declined = known is not None and known.inherited
            for slot in list(held.values()):
                if slot is known or slot.trainer is not trainer or (declined and slot.inherited):
                    os.close(held.pop(slot.number).descriptor)
            held[number] = HeldSlot(number, descriptor, trainer)

    def count(self, trainer: object) -> int:
        """How many slots ``trainer`` has, as far as is known."""
        with self._lock:
            return sum(slot.trainer is trainer for held in self._ranks.values() for slot in held.values())

    def take(self, trainer: object, rank: int, number: int) -> Taken | None:
        """A slot to upload from, until :meth:`give_back`; None where ``trainer`` has no such slot.

        Raises:
            OSError: this process has too many descriptors.
        """
        with self._lock:
            slot = self._ranks.get(rank, {}).get(number)
            if slot is None or slot.trainer is not trainer:
                return None
            taken = Taken(slot, os.dup(slot.descriptor))
            slot.busy += 1
            slot.inherited = False
            slot.manifest = ""
            return taken

    def give_back(self, taken: Taken, manifest: str) -> None:
        """An upload no longer reads the slot.

        Args:
            manifest: key of the checkpoint that was committed from it, or "".
        """
        with self._lock:
            taken.slot.busy -= 1
            taken.slot.manifest, taken.slot.sequence = manifest, read_sequence(taken.descriptor)
            os.close(taken.descriptor)

    def inherit(self, trainer: object, rank: int) -> list[Returned]:
        """What earlier trainers of ``rank`` left: it is ``trainer``'s from now on. Slots still being read are not."""
        with self._lock:
            left = [slot for slot in self._ranks.get(rank, {}).values() if not slot.busy]
            for slot in left:
                slot.trainer, slot.inherited = trainer, True
            return [Returned(slot.number, slot.descriptor, slot.holds()) for slot in left]

    def forget(self, trainer: object) -> None:
        """``trainer`` has finished, and nobody comes after it: let its memory go, but for what is still being read."""
        with self._lock:
            for held in self._ranks.values():
                for slot in [slot for slot in held.values() if slot.trainer is trainer and not slot.busy]:
                    os.close(held.pop(slot.number).descriptor)

    def close(self) -> None:
        """Let all of it go."""
        with self._lock:
            for held in self._ranks.values():
                for slot in held.values():
                    os.close(slot.descriptor)
            self._ranks.clear()
