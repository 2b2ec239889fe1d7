"""A trainer without torch that stages into slots of its own and leaves the uploading to the agent.

Usage: stager.py JSON, where JSON gives the fields of :class:`Plan`. Prints what happens, a line each.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from pathlib import Path

import msgspec

from unbroken.checkpoint import HostState, HostTensor, TensorRef, encode_tree
from unbroken.journal import Journal, Lease, Origin
from unbroken.journal.events import RunFinished
from unbroken.link.arena import Slot, SlotOwner, layout
from unbroken.link.channel import ChannelError, connect
from unbroken.link.messages import (
    PROTOCOL,
    Bye,
    Hello,
    Message,
    Restored,
    Sealed,
    SlotCommitted,
    SlotFailed,
    SlotOffered,
    SlotReturned,
    Stop,
    Stopping,
    Welcome,
)
from unbroken.store import open_store

SIZE = 1 << 20


class Plan(msgspec.Struct):
    uri: str
    saves: tuple[int, ...] = (1,)
    """Steps of the first attempt; a later one saves the step after the newest checkpoint, and finishes."""
    answered: int = 0
    """How many of those saves are waited for before the next one."""
    die: str = ""
    """Where the first attempt kills itself at its last save: ``writing``, ``sealed``, ``announced``, ``held`` (when the
    file ``held`` is there)."""
    held: str = ""
    slots: int = 2
    stop: int = 0
    """The step to save when told to stop; waits for that."""
    first_hello: tuple[int, str] = (0, "")
    """Attempt and claim that another agent gave."""


def content(step: int, name: str) -> bytes:
    """The bytes of a tensor: ``frozen`` is the same at all steps."""
    return bytes([7 if name == "frozen" else step % 251]) * SIZE


def fill(slot: Slot, owner: SlotOwner, step: int, *, seal: bool = True, stall: float = 0.0) -> None:
    names = ["frozen", "weight"]
    starts, length = layout([SIZE, SIZE])
    room = slot.reserve(length)
    tensors = []
    for name, start in zip(names, starts, strict=True):
        room[start : start + SIZE] = content(step, name)
        tensors.append(HostTensor(name, "uint8", (SIZE,), room[start : start + SIZE]))
    tree = encode_tree({"model": {name: TensorRef(name) for name in names}})
    if seal:
        slot.seal(owner, HostState(step, tree, tensors, {"loss": [(step, 1.0 / step)]}, stall=stall), starts)


class Stager:
    def __init__(self, plan: Plan, path: Path) -> None:
        self.plan = plan
        self.channel = connect(path, timeout=20)
        attempt, claim = plan.first_hello
        self.channel.send(Hello(PROTOCOL, plan.uri, os.getpid(), attempt=attempt, claim=claim))
        self.messages = self.channel.messages()
        answer = next(self.messages)
        assert isinstance(answer, Welcome), answer
        self.lease = Lease(answer.attempt, answer.claim)
        self.owner = SlotOwner(plan.uri, answer.attempt, answer.claim)
        say(f"welcome {answer.attempt} {answer.claim} with {answer.slots} slots")
        self.slots: dict[int, Slot] = {}
        for _ in range(answer.slots):
            returned = next(self.messages)
            assert isinstance(returned, SlotReturned), returned
            self.slots[returned.slot] = Slot(returned.slot, self.channel.take_descriptor())
            say(f"returned {returned.slot} {returned.manifest or '-'}")
        self.heard: queue.Queue[Message | None] = queue.Queue()
        self.stopped = threading.Event()
        threading.Thread(target=self.listen, daemon=True).start()
        self.journal = Journal.open(open_store(plan.uri))
        self.unanswered: set[int] = set()

    def listen(self) -> None:
        for message in self.messages:
            say(f"heard {msgspec.json.encode(message).decode()}")
            if isinstance(message, Stop):
                self.stopped.set()
            else:
                self.heard.put(message)
        self.heard.put(None)

    def train(self) -> int:
        plan, kept = self.plan, self.journal.state.checkpoints
        newest = kept[-1] if kept else None
        step = newest.step if newest else 0
        self.channel.send(Restored(step, 0.0, 0, newest.event.manifest if newest else ""))
        if self.lease.attempt > 1:
            self.save(step + 1, step + 1)
            self.await_all()
            self.journal.refresh()
            self.journal.append(RunFinished(step + 1), Origin("here", os.getpid()), self.lease)
            return self.leave("finished", step + 1, 0)
        for place, step in enumerate(plan.saves):
            self.save(place, step, die=plan.die if step == plan.saves[-1] else "")
            if place < plan.answered:
                self.await_all()
        if plan.stop:
            assert self.stopped.wait(60)
            self.channel.send(Stopping(plan.stop))
            if plan.slots == 1:
                self.await_all()
            self.save(len(plan.saves), plan.stop)
            self.await_all()
            return self.leave("interrupted", plan.stop, 75)
        self.await_all()
        return self.leave("left", plan.saves[-1], 0)

    def save(self, place: int, step: int, die: str = "") -> None:
        number = place % self.plan.slots
        while number in self.unanswered:
            self.answer()
        if number not in self.slots:
            self.slots[number] = Slot.create(number)
            self.channel.send(SlotOffered(number), self.slots[number].descriptor)
        fill(self.slots[number], self.owner, step, seal=die != "writing")
        if die in ("writing", "sealed"):
            perish()
        self.channel.send(Sealed(number, step))
        self.unanswered.add(number)
        say(f"announced {step}")
        if die == "held":
            while not Path(self.plan.held).exists():
                threading.Event().wait(0.02)
        if die:
            perish()

    def await_all(self) -> None:
        while self.unanswered:
            self.answer()

    def answer(self) -> None:
        message = self.heard.get(timeout=60)
        if message is None:
            raise ChannelError("the agent is gone")
        if isinstance(message, SlotCommitted | SlotFailed):
            self.unanswered.discard(message.slot)

    def leave(self, outcome: str, step: int, code: int) -> int:
        self.channel.send(Bye(outcome, step, exit_code=code))
        self.channel.close()
        return code


def perish() -> None:
    say("dies")
    os.kill(os.getpid(), signal.SIGKILL)


def say(text: str) -> None:
    sys.stdout.write(f"stager: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    sys.exit(Stager(plan, Path(os.environ["UNBROKEN_SOCKET"])).train())
