"""Saves made durable by the agent: it reads the slot, and this process only hears what became of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unbroken.checkpoint import Manifest
from unbroken.clock import Clock
from unbroken.errors import StoreError
from unbroken.journal import CheckpointRecord
from unbroken.journal.events import CheckpointCommitted
from unbroken.link.arena import Slot
from unbroken.link.channel import Channel, ChannelError
from unbroken.link.messages import Committed, FromTrainer, Restored, Sealed, SlotCommitted, SlotFailed, SlotOffered
from unbroken.training.agent_link import AgentLink, named_error
from unbroken.training.local_writer import LocalWriter
from unbroken.training.saver import PendingSave

_log = logging.getLogger("unbroken")

_ANSWER_SECONDS = 3600.0
"""How long an agent that lives may take over one save, with its own retries."""


class StillUnderWay(StoreError):  # noqa: N818 - nothing is wrong: nobody waits any more
    """The agent has not answered for a save, and may yet make it durable."""


def _keep() -> None:
    """Give no slot back."""


def _step_of(answer: SlotCommitted | SlotFailed) -> int:
    return answer.event.step if isinstance(answer, SlotCommitted) else answer.step


@dataclass
class _Announced:
    pending: PendingSave
    answer: SlotCommitted | SlotFailed | None = None


class RemoteWriter:
    """A :class:`~unbroken.training.saver.SaveWriter` whose work the agent does, or this process where none lives.

    Args:
        link: its agent; may be exchanged for another one at any time.
        local: makes the writer of this process, when it is needed.
    """

    def __init__(self, link: AgentLink, local: Callable[[], LocalWriter], *, clock: Clock) -> None:
        self._link = link
        self._make_local = local
        self._local: LocalWriter | None = None
        self._clock = clock
        self._changed = threading.Condition()
        self._channel: Channel | None = None
        self._slots: dict[int, Slot] = {}
        """All there are, by number: an agent must know whether the stop step will find room beside an upload."""
        self._offered: set[int] = set()
        self._announced: dict[int, _Announced] = {}
        """Not answered for yet, or answered and not heard by :meth:`write`; by the slot's number, oldest first."""
        self._parent = Restored(0, 0.0, 0)
        self._alone = False
        """No agent will come any more."""
        self._hurried = False
        self._following = False
        link.follow(self)
        self._following = True

    def offer(self, slots: Sequence[Slot]) -> None:
        """Let each agent have the memory into which states will be staged."""
        with self._changed:
            self._slots.update({slot.number: slot for slot in slots})
            self._say_slots()

    def announce(self, pending: PendingSave) -> None:
        """Let the agent know at once, whatever it is at: what it knows of survives this process."""
        if pending.slot is None or pending.state is None:
            return
        with self._changed:
            self._slots[pending.slot.number] = pending.slot
            self._announced[pending.slot.number] = _Announced(pending)
            self._say_slots()
            self._say_sealed(pending)

    def write(self, pending: PendingSave) -> CheckpointCommitted:
        """Wait for what the agent says of an announced save; see to it here where there is no agent.

        Raises:
            FencedError: a later attempt owns the run.
            StoreError: it was given up, or nobody answered in time.
        """
        answer = self._answer(pending) if pending.slot is not None else None
        match answer:
            case SlotCommitted(event=event):
                with self._changed:
                    self._parent = Restored(event.step, 0.0, event.size, event.manifest)
                return event
            case SlotFailed():
                raise named_error(answer.error, answer.message, answer.kind, answer.hint)
        return self._write_alone(pending)

    def continue_from(self, record: CheckpointRecord, manifest: Manifest) -> None:
        """Each agent that comes from now on is told the parent of the next checkpoint; this one is, by the attempt."""
        with self._changed:
            self._parent = Restored(record.step, 0.0, record.event.size, record.event.manifest)
            if self._local is not None:
                self._local.continue_from(record, manifest)

    def hurry(self) -> None:
        """Wait for no answer any more."""
        with self._changed:
            self._hurried = True
            if self._local is not None:
                self._local.hurry()
            self._changed.notify_all()

    def connected(self, channel: Channel) -> None:
        """An agent has welcomed this attempt: it is told all that is not answered yet. Called by the link."""
        with self._changed:
            self._channel, self._offered = channel, set()
            if self._following:  # else the first one, whom the attempt tells
                self._say(self._parent)
            self._say_slots()
            for announced in self._announced.values():
                if announced.answer is None:
                    self._say_sealed(announced.pending)
            self._changed.notify_all()

    def heard(self, message: SlotCommitted | SlotFailed) -> None:
        """What the agent says of a slot. Called by the link."""
        with self._changed:
            announced = self._announced.get(message.slot)
            # By the step, too: the slot may hold another state than the one of which a late answer speaks.
            if announced is None or announced.answer is not None or announced.pending.step != _step_of(message):
                _log.debug("an answer that nobody waits for: %r", message)
                return
            announced.answer = message
            self._changed.notify_all()

    def alone(self) -> None:
        """No agent will come any more. Called by the link."""
        with self._changed:
            self._alone = True
            self._changed.notify_all()

    def _say(self, message: FromTrainer, descriptor: int | None = None) -> bool:
        """Tell the agent; one that is gone is replaced, and the next one hears all of it from :meth:`connected`."""
        if self._channel is None:
            return False
        try:
            self._channel.send(message, descriptor)
        except ChannelError as error:
            _log.debug("not told to the agent: %s", error)
            return False
        return True

    def _say_slots(self) -> None:
        for slot in self._slots.values():
            known = slot.number in self._offered or slot.descriptor < 0  # closed since
            if not known and self._say(SlotOffered(slot.number), slot.descriptor):
                self._offered.add(slot.number)

    def _say_sealed(self, pending: PendingSave) -> None:
        if pending.slot is not None:
            self._say(Sealed(pending.slot.number, pending.step))

    def _answer(self, pending: PendingSave) -> SlotCommitted | SlotFailed | None:
        """What the agent answers; None where there is none any more."""
        number = pending.slot.number if pending.slot is not None else -1
        deadline = self._clock.monotonic() + _ANSWER_SECONDS
        with self._changed:
            while True:
                announced = self._announced[number]
                if announced.answer is not None or self._alone:
                    del self._announced[number]
                    return announced.answer
                left = deadline - self._clock.monotonic()
                if self._hurried or left <= 0:
                    del self._announced[number]
                    pending.release = _keep  # the agent may be reading it: never to be written to again
                    raise StillUnderWay(f"the agent has not made step {pending.step} durable yet", kind="agent")
                self._changed.wait(left)

    def _write_alone(self, pending: PendingSave) -> CheckpointCommitted:
        if pending.state is None:
            raise StoreError(f"step {pending.step} was not staged", kind="fault")
        if pending.state.world_size > 1:
            raise StoreError(
                f"no agent lives that would write rank {pending.state.rank}'s part of step {pending.step}", kind="agent"
            )
        if self._local is None:
            local = self._make_local()
            event = local.take_over(pending.state, self._parent.manifest)
            self._local = local
            if event is not None:
                return event
        event = self._local.write(pending)
        with self._changed:
            self._parent = Restored(event.step, 0.0, event.size, event.manifest)
            self._say(Committed(event.step, event.seconds, event.stall, event.written))
        return event
