"""The thread that makes announced slots durable, one after another, whether or not their trainer still lives.

What one of several ranks staged is only a part of a checkpoint: the gathering completes it, and the thread goes on.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import TypeAlias

from unbroken.agent.arena import Arena, Taken
from unbroken.agent.attempt_writer import AttemptWriter
from unbroken.agent.emergency import Choice
from unbroken.agent.events import Chosen, Durable, Fenced, ThreadFailed, Trouble, Woken
from unbroken.agent.gathering import Gathering
from unbroken.agent.outcome import may_pass
from unbroken.agent.priority import lower_uploads, raise_uploads
from unbroken.agent.rank_attempt_writer import RankAttemptWriter
from unbroken.agent.slot_answers import answer_committed, answer_failed
from unbroken.agent.triage import Upload
from unbroken.agent.upload_queue import UploadQueue
from unbroken.checkpoint import HostState, RankDurable
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import ConfigError, FencedError, StoreError, UnbrokenError
from unbroken.journal.events import CheckpointCommitted
from unbroken.link.arena import read_sequence, read_slot
from unbroken.link.channel import Channel

UploadEvent: TypeAlias = Durable | Chosen | Fenced | Trouble | ThreadFailed | Woken

_TRIES = 3
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 15.0
_PRESSED_PAUSE = 0.25


class _AbandonedError(Exception):
    """Raised between two pieces of an upload that is not wanted any more."""


class Uploader:
    """Owns the upload thread. All methods are safe from any thread.

    Args:
        arena: where the slots come from.
        tell: told, in the upload thread or in that of a caller, of each commit, of what was chosen as time ran short,
            of a later attempt's claim, of what nobody else will say, of a fault of the thread, and when nothing is left
            to do.
        nice: of the threads that upload, 0 to 19, while nothing presses.
    """

    def __init__(self, arena: Arena, tell: Callable[[UploadEvent], None], clock: Clock, *, nice: int = 0) -> None:
        self._arena = arena
        self._tell = tell
        self._clock = clock
        self._nice = nice
        self._queue = UploadQueue(arena, self._chose, clock)
        self._gathering = Gathering(arena, tell, clock)
        self._thread = threading.Thread(target=self._work, name="unbroken-uploader", daemon=True)
        self._thread.start()

    def submit(self, writer: AttemptWriter | RankAttemptWriter, trainer: Channel, taken: Taken, step: int) -> None:
        """Have a slot made durable and ``trainer`` told about it; the slot is given back in any case."""
        if isinstance(writer, RankAttemptWriter):
            writer.ranks.announce(writer.rank, step)
        if not self._queue.add(Upload(writer, trainer, taken, step, peers=writer.peers)):
            self._arena.give_back(taken, "")

    def begin(self) -> None:
        """Another attempt begins; nothing of the one before is left."""
        self._queue.begin()

    def parted(self, trainer: Channel) -> None:
        """``trainer`` is gone: what it announced is all that is left of its work."""
        self._queue.parted(trainer)
        self._gathering.look()

    def left(self) -> tuple[int, ...]:
        """Steps that are announced and not answered for, oldest first."""
        return tuple(dict.fromkeys((*self._gathering.left(), *self._queue.left())))

    def drain(self, seconds: float) -> bool:
        """Wait until nothing is left to do; False if that takes longer than ``seconds``."""
        deadline = SYSTEM_CLOCK.monotonic() + seconds  # as conditions wait
        return self._queue.drain(seconds) and self._gathering.drain(deadline - SYSTEM_CLOCK.monotonic())

    def press(self, until: float) -> None:
        """The machine will be taken, and all must be committed by ``until``, in monotonic seconds."""
        self._queue.press(until)
        self._gathering.press(until)
        raise_uploads()

    def stopping(self, step: int) -> None:
        """The trainers stop at ``step``: its state comes next."""
        self._queue.stopping(step)

    def abandon(self, reason: str) -> None:
        """Give up all that is announced, as soon as the storage lets go of it."""
        self._queue.abandon(reason)
        self._gathering.abandon(reason)

    def close(self, timeout: float) -> bool:
        """Give up what is left and end the threads; False where one hangs for more than ``timeout`` seconds.

        The threads are daemons: they keep no process alive.
        """
        self._queue.close("the agent is leaving")
        self._thread.join(timeout)
        return self._gathering.close(timeout) and not self._thread.is_alive()

    def _work(self) -> None:
        try:
            while (upload := self._queue.next()) is not None:
                self._serve(upload)
                if self._queue.done() and not self._gathering.left():
                    self._tell(Woken())
        except BaseException as error:  # noqa: BLE001 - handed to the owner
            self._tell(ThreadFailed(error))

    def _serve(self, upload: Upload) -> None:
        if not self._queue.pressed:
            lower_uploads(self._nice)
        attempt = upload.writer.claim.lease.attempt
        result: CheckpointCommitted | RankDurable | UnbrokenError
        try:
            result = self._upload(upload)
        except _AbandonedError:
            result = StoreError(f"given up: {upload.abandoned}", kind="abandoned")
        except UnbrokenError as error:
            result = error.with_traceback(None)
        except BaseException as error:  # noqa: BLE001 - a thread that died would never save again, and say nothing
            text = f"the save met a fault of our own ({type(error).__name__}: {error})"
            result = StoreError(text, kind="fault")
        upload.ended = True
        if isinstance(result, RankDurable) and isinstance(upload.writer, RankAttemptWriter):
            self._gathering.add(upload, upload.writer, result)
        elif isinstance(result, CheckpointCommitted):
            self._arena.give_back(upload.taken, result.manifest)
            self._tell(Durable(result, attempt))
            self._queue.done()  # before the trainer hears of it, and leaves: nothing of it is left to be rescued
            answer_committed(upload, result)
            self._gathering.look()
        elif isinstance(result, UnbrokenError):
            self._failed(upload, result)

    def _failed(self, upload: Upload, error: UnbrokenError) -> None:
        gc.collect()  # errors of several threads hold each other, and views of a slot that may be many gigabytes
        self._arena.give_back(upload.taken, "")
        if isinstance(error, FencedError):
            self._tell(Fenced(error.message, upload.writer.claim.lease.attempt))
        if isinstance(upload.writer, RankAttemptWriter):
            upload.writer.ranks.fail(upload.step, f"rank {upload.writer.rank} could not be saved: {error.message}")
            self._gathering.look()
        if not answer_failed(upload, error):
            self._tell(Trouble(f"step {upload.step}, which the trainer left in memory, is lost: {error.message}"))

    def _upload(self, upload: Upload) -> CheckpointCommitted | RankDurable:
        """Try up to three times; what nobody will save again, for as long as the storage may come back."""
        upload.sequence = read_sequence(upload.taken.descriptor)
        state, pause, tries = _read(upload), _FIRST_PAUSE, 0
        upload.stall, upload.began_at = state.stall, state.began_at
        while True:
            tries += 1
            try:
                return self._write(upload, state)
            except (FencedError, ConfigError):
                raise
            except UnbrokenError as error:
                last = upload.orphan or self._queue.pressed
                if tries >= _TRIES and not (last and may_pass(type(error).__name__, error.kind)):
                    raise
            if self._clock.wait(upload.hurry, pause) and not upload.abandoned:
                self._clock.sleep(_PRESSED_PAUSE)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _write(self, upload: Upload, state: HostState) -> CheckpointCommitted | RankDurable:
        begun, since = 0, self._clock.monotonic()
        upload.sent = 0

        def piece(size: int) -> None:
            nonlocal begun
            _demand_wanted(upload)
            measured.sent(begun)  # whoever begins a piece is through with the one before
            begun = size
            self._queue.piece(size)

        with self._queue.meter.upload() as measured:
            _demand_wanted(upload)
            result = upload.writer.write(state, piece)
            measured.sent(begun)
        upload.seconds = self._clock.monotonic() - since
        return result

    def _chose(self, choice: Choice) -> None:
        self._tell(Chosen(choice.action.value, choice.text, dict(choice.numbers)))


def _demand_wanted(upload: Upload) -> None:
    if read_sequence(upload.taken.descriptor) != upload.sequence:
        # By a trainer that lost us and was served by another agent: what we read from here on is torn.
        upload.abandoned = "its slot is being written to again"
    if upload.abandoned:
        raise _AbandonedError


def _read(upload: Upload) -> HostState:
    """What the slot holds.

    Raises:
        StoreError: not what was announced (kind ``slot``).
        DamagedError: nothing that makes sense.
    """
    held = read_slot(upload.taken.descriptor)
    claim, number = upload.writer.claim, upload.taken.slot.number
    if held is None:
        raise StoreError(f"slot {number} was announced and is not sealed", kind="slot")
    owner, state = held
    mine = (claim.uri, claim.lease.attempt, claim.lease.claim)
    if (owner.uri, owner.attempt, owner.claim) != mine or state.step != upload.step:
        raise StoreError(
            f"slot {number} was announced with step {upload.step} of attempt {claim.lease.attempt} of {claim.uri} and "
            f"holds step {state.step} of attempt {owner.attempt} of {owner.uri}",
            kind="slot",
        )
    if (state.rank, state.world_size) != upload.writer.place:
        rank, world_size = upload.writer.place
        raise StoreError(
            f"slot {number} of rank {rank} of {world_size} holds what rank {state.rank} of {state.world_size} staged",
            kind="slot",
        )
    return state
