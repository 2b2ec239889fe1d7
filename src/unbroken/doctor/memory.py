"""Whether host memory holds copies of the state, so that training goes on while a checkpoint is uploaded."""

from __future__ import annotations

from unbroken.doctor.finding import Finding, failure, note, sound, warning
from unbroken.doctor.place import Place
from unbroken.size import size_text
from unbroken.training.memory import KEPT_BACK, Room, host_room, slots_that_fit

_SLOTS = 2


def check_memory(place: Place) -> list[Finding]:
    """How many slots a training would make here: two, one, or none, by the same decision that it takes."""
    return [judged(host_room(place.root), place.state, place.memory)]


def judged(room: Room, state: int | None, memory: int | None) -> Finding:
    """What this room means for a state.

    Args:
        room: what may be taken now.
        state: bytes; None where nobody said.
        memory: bytes that the training will take for itself; None counts as none.
    """
    left = room.size - (memory or 0)
    there = f"{room.bound} leaves {size_text(room.size)}"
    if memory:
        there += f", and the training takes {size_text(memory)} of it"
    if left < 0:
        why = "The training would be killed by the kernel for want of memory"
        return failure(there, why, "Take a larger machine, or raise the container's memory limit")
    if state is None:
        most = max(0.0, (left - KEPT_BACK) / (_SLOTS + 0.1))
        found = f"{there}: two copies of a state of up to {size_text(most)} fit"
        return note(found, todo="Say how large the state is (resources.state, or --state)")
    slots = slots_that_fit([state] * _SLOTS, state, left)
    todo = f"Give the node or the container {size_text(2.1 * state + KEPT_BACK - left)} more memory"
    if slots == _SLOTS:
        return sound(f"{there}: two copies of the state ({size_text(state)}) fit")
    if slots == 1:
        found = f"{there}: one copy of the state ({size_text(state)}) fits"
        return warning(found, "A save then waits until the one before is uploaded", todo)
    why = "The training then stands still for as long as a checkpoint is uploaded"
    return warning(f"{there}: no copy of the state ({size_text(state)}) fits", why, todo)
