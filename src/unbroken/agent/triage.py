"""Applies the choice of :mod:`unbroken.agent.emergency` to the uploads that wait, while a notice runs."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

from unbroken.agent.arena import Taken
from unbroken.agent.attempt_writer import AttemptWriter
from unbroken.agent.bandwidth import BandwidthMeter
from unbroken.agent.emergency import Action, Choice, InFlight, Situation, choose, should_revise
from unbroken.agent.rank_attempt_writer import RankAttemptWriter
from unbroken.clock import Clock
from unbroken.link.channel import Channel


@dataclass(eq=False)
class Upload:
    """A slot that was announced, and for whom."""

    writer: AttemptWriter | RankAttemptWriter
    trainer: Channel
    taken: Taken
    step: int
    size: int = field(init=False)
    """Bytes of the slot."""
    sent: int = 0
    """Bytes whose sending has begun."""
    sequence: int = 0
    """Of the slot, when it was read."""
    stall: float = 0.0
    """Seconds for which the loop stood still for it, once that is known."""
    began_at: float = 0.0
    """Monotonic seconds at the step boundary, once that is known."""
    seconds: float = 0.0
    """What the upload took, once it is durable."""
    peers: int = 1
    """Ranks on this node whose parts of a step belong together, this one included."""
    orphan: bool = False
    """Whether its trainer is gone: there will be no later state, and nobody saves this one again."""
    abandoned: str = ""
    """Why it is not to be gone on with, or ""."""
    ended: bool = False
    """Whether it is committed or given up, and its trainer about to be told."""
    hurry: threading.Event = field(default_factory=threading.Event)
    """Set where it is not to be waited with."""

    def __post_init__(self) -> None:
        self.size = os.fstat(self.taken.descriptor).st_size  # now: the upload thread closes the descriptor

    def expected(self) -> int:
        """Bytes that it is likely to write in all: at most about the slot's."""
        return self.writer.expected(self.size)

    def abandon(self, reason: str) -> None:
        """Stop it at its next piece."""
        self.abandoned = self.abandoned or reason
        self.hurry.set()


class Triage:
    """Knows the deadline and the stop step. Not safe for several threads at once.

    Args:
        meter: of all uploads.
    """

    def __init__(self, meter: BandwidthMeter, clock: Clock) -> None:
        self._meter = meter
        self._clock = clock
        self._until: float | None = None
        self._stop_step = -1
        self._choice: Choice | None = None
        self._chosen_at = 0.0

    @property
    def pressed(self) -> bool:
        """Whether a notice runs."""
        return self._until is not None

    def press(self, until: float) -> None:
        """All must be committed by ``until``, in monotonic seconds."""
        self._until = until

    def stopping(self, step: int) -> None:
        """The trainers stop at ``step``, whose state comes next or is here already."""
        self._stop_step = max(self._stop_step, step)

    def forget(self) -> None:
        """Another attempt begins."""
        self._stop_step, self._choice = -1, None

    def weigh(self, uploads: list[Upload], slots: int) -> Choice | None:
        """Choose, or choose again where the choice no longer holds, and abandon what has to go.

        Args:
            uploads: that under way, if any, and those that wait, oldest first.
            slots: how many the trainer has.

        Returns:
            a choice that does something else than the one before.
        """
        wanted = [upload for upload in uploads if not (upload.abandoned or upload.ended)]
        if self._until is None or not wanted:
            return None
        if self._stop_step < 0 and not wanted[-1].orphan:
            return None  # training goes on: there will be a later state, and nothing is known of it yet
        left, before = self._until - self._clock.monotonic(), self._choice
        if not self._holds(left, wanted):
            self._choice = choose(self._situation(wanted, slots, left))
            self._chosen_at = self._clock.monotonic()
        if self._choice is not None and self._choice.action is Action.REPLACE:
            self._give_way(self._choice.situation.stop_step, wanted, slots)
        return self._choice if self._choice is not None and _differs(self._choice, before) else None

    def _holds(self, left: float, wanted: list[Upload]) -> bool:
        if self._choice is None or wanted[-1].step > self._choice.situation.stop_step:
            return False
        elapsed = self._clock.monotonic() - self._chosen_at
        return not should_revise(self._choice, elapsed=elapsed, left=left, bandwidth=self._meter.bandwidth)

    def _situation(self, wanted: list[Upload], slots: int, left: float) -> Situation:
        first, newest = wanted[0], wanted[-1]
        last = [upload for upload in wanted if upload.step == newest.step]
        sealed = newest.step >= self._stop_step
        alone = sealed and first.step == newest.step and not any(upload.sent for upload in last)
        kept = newest.writer.claim.journal.state.checkpoints
        return Situation(
            left=left,
            stop_step=max(newest.step, self._stop_step),
            stop_bytes=_all_parts(last),
            in_flight=None if alone else InFlight(first.step, _unsent(wanted, first.step)),
            bandwidth=self._meter.bandwidth,
            stage_seconds=0.0 if sealed else newest.stall,
            second_slot=slots > 1,
            durable_step=kept[-1].step if kept else -1,
        )

    def _give_way(self, stop_step: int, wanted: list[Upload], slots: int) -> None:
        """Let older states go for the stop step: once it is there, or where it needs the only slot there is."""
        if wanted[-1].step >= stop_step or slots < 2:
            for upload in wanted:
                if upload.step < stop_step:
                    upload.abandon(f"for step {stop_step}")


def _all_parts(last: list[Upload]) -> int:
    """What a step writes on this node: the parts that are announced are a measure of those that are not."""
    return sum(upload.expected() for upload in last) * max(len(last), last[0].peers) // len(last)


def _unsent(wanted: list[Upload], step: int) -> float:
    """Bytes of a step that are still to be sent from this node."""
    return sum(max(0, upload.expected() - upload.sent) for upload in wanted if upload.step == step)


def _differs(choice: Choice, before: Choice | None) -> bool:
    """Not where only the figures behind it have changed: as the bandwidth is being measured they do so every moment."""
    return before is None or (choice.action, choice.situation.stop_step) != (before.action, before.situation.stop_step)
