"""Completes saves of several ranks after the last byte of this node: whoever sees all records commits them, once."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from typing import TypeAlias

from unbroken.agent.arena import Arena
from unbroken.agent.common_save import LISTING_PAUSE, LONGEST_PAUSE, CommonSave, Part
from unbroken.agent.events import Durable, Fenced, ThreadFailed, Trouble, Woken
from unbroken.agent.outcome import may_pass
from unbroken.agent.rank_attempt_writer import RankAttemptWriter
from unbroken.agent.slot_answers import answer_committed, answer_failed
from unbroken.agent.triage import Upload
from unbroken.checkpoint import RankDurable, commit_ranks, find_rank_records, list_rank_records
from unbroken.clock import Clock
from unbroken.errors import FencedError, MismatchError, StoreError, UnbrokenError
from unbroken.journal import CheckpointRecord
from unbroken.link.arena import read_sequence

GatherEvent: TypeAlias = Durable | Fenced | Trouble | ThreadFailed | Woken

TAKE_OVER = 20.0
"""Seconds for which all records may lie there before another agent than that of rank 0 commits them: the next one. The
two after it wait twice as long, the four after these three times: so that not all of them read all records."""
TAKE_OVER_PRESSED = 3.0
"""The same while a notice runs: the agent of rank 0 may be gone already."""
_RECURRING = ("shared", "coverage")
"""Kinds of what is wrong with each save of a program."""


class Gathering:
    """Owns the thread that completes saves. All methods are safe from any thread.

    Args:
        arena: where the slots come from; each is given back as its save ends.
        tell: told, in the thread, of each commit, of a later attempt's claim, of what nobody else will say, of a fault
            of the thread, and when nothing is left to do.
    """

    def __init__(self, arena: Arena, tell: Callable[[GatherEvent], None], clock: Clock) -> None:
        self._arena = arena
        self._tell = tell
        self._clock = clock
        self._changed = threading.Condition()
        self._saves: dict[tuple[int, int], CommonSave] = {}
        self._ending: list[CommonSave] = []
        """Such as take no more parts."""
        self._until: float | None = None
        self._closed = False
        self._said: set[str] = set()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="unbroken-gathering", daemon=True)
        self._thread.start()

    def add(self, upload: Upload, writer: RankAttemptWriter, durable: RankDurable) -> None:
        """A rank's part is durable; from here on its slot is ours to give back, and its trainer ours to tell."""
        now, key = self._clock.monotonic(), (writer.claim.lease.attempt, upload.step)
        with self._changed:
            save = self._saves.get(key)
            if save is not None and writer.rank in save.parts:
                save.abandoned = "it was staged again"
                self._ending.append(self._saves.pop(key))
                save = None
            if save is None:
                save = self._saves[key] = CommonSave(writer.ranks, upload.step, now, writer.tail)
            save.add(Part(upload, writer, durable), now)
            if self._until is not None:
                save.press()
            if self._closed:
                save.abandoned = "the agent is leaving"
        self._wake.set()

    def look(self) -> None:
        """Something has changed: a rank failed, or its trainer is gone, or a commit was read."""
        self._wake.set()

    def left(self) -> tuple[int, ...]:
        """Steps that are neither committed nor given up, oldest first."""
        with self._changed:
            return tuple(save.step for save in self._all())

    def drain(self, seconds: float) -> bool:
        """Wait until all are; False if that takes longer than ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._all(), seconds)

    def press(self, until: float) -> None:
        """The machine will be taken, and all must be committed by ``until``, in monotonic seconds."""
        with self._changed:
            self._until = until
            for save in self._saves.values():
                save.press()
        self._wake.set()

    def abandon(self, reason: str) -> None:
        """Give up all there is."""
        with self._changed:
            for save in self._all():
                save.abandoned = save.abandoned or reason
        self._wake.set()

    def close(self, timeout: float) -> bool:
        """Give up what is left and end the thread; False where it hangs in the store for more than ``timeout`` seconds.

        The thread is a daemon: it keeps no process alive.
        """
        with self._changed:
            self._closed = True
        self.abandon("the agent is leaving")
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _all(self) -> list[CommonSave]:
        return [*self._ending, *self._saves.values()]

    def _work(self) -> None:
        try:
            while True:
                self._wake.clear()
                with self._changed:
                    saves, closed = self._all(), self._closed
                if closed and not saves:
                    return
                pause = min([self._look(save) for save in saves], default=math.inf)
                if pause == math.inf:
                    self._wake.wait()
                else:
                    self._clock.wait(self._wake, pause)
        except BaseException as error:  # noqa: BLE001 - handed to the owner
            self._tell(ThreadFailed(error))

    def _look(self, save: CommonSave) -> float:
        """Do what is due for a save; the seconds until something will be."""
        now = self._clock.monotonic()
        error: UnbrokenError | None = None
        try:
            record = save.commit() or self._advance(save, now)
            if record is not None:
                self._committed(save, record)
                return 0.0
        except StoreError as caught:
            save.trouble = caught.message
            error = None if may_pass(type(caught).__name__, caught.kind) else caught
        except UnbrokenError as caught:
            error = caught
        except Exception as caught:  # noqa: BLE001 - a thread that died would never commit again, and say nothing
            error = StoreError(f"the commit met a fault of our own ({caught!r})", kind="fault")
        reason = save.hopeless(now, self._until) if error is None else error.message
        if not reason:
            return save.soonest(now, self._until)
        save.ranks.fail(save.step, reason)
        self._give_up(save, error or _hopeless(save, reason))
        return 0.0

    def _advance(self, save: CommonSave, now: float) -> CheckpointRecord | None:
        """Find the commit of a save, or make it; None where it is not time yet."""
        ranks = save.ranks
        if now < save.next_at or not save.ready or save.hopeless(now, self._until):
            return None
        save.next_at, save.pause = now + save.pause, min(2 * save.pause, LONGEST_PAUSE)
        if ranks.whole:
            return self._commit(save)
        if save.looked or not ranks.leads:
            ranks.claim.journal.require(ranks.claim.lease)
            found = save.commit()
            if found is not None or save.hopeless(now, self._until):
                return found
        save.looked = True
        if not save.there and (ranks.leads or now >= save.list_at):
            self._list(save, now)
        if not save.there:
            return None
        save.complete_at = now if save.complete_at is None else save.complete_at
        patience = TAKE_OVER if self._until is None else TAKE_OVER_PRESSED
        if not ranks.leads and now < save.complete_at + patience * ranks.turn:
            return None
        if not save.complete:
            self._read(save)
        return self._commit(save) if save.complete else None

    def _list(self, save: CommonSave, now: float) -> None:
        save.list_at = now + (LISTING_PAUSE if self._until is None else LONGEST_PAUSE)
        if save.ranks.leads:
            self._read(save)
        else:  # of a hundred agents each would read what a thousand ranks wrote
            store, world_size = save.ranks.claim.journal.store, save.ranks.world_size
            save.listed = list_rank_records(store, save.attempt, save.step, world_size)

    def _read(self, save: CommonSave) -> None:
        store, world_size = save.ranks.claim.journal.store, save.ranks.world_size
        found = find_rank_records(store, save.attempt, save.step, world_size, dict(save.known))
        with self._changed:
            save.known = {**found, **{rank: part.durable for rank, part in save.parts.items()}}

    def _commit(self, save: CommonSave) -> CheckpointRecord:
        claim = save.ranks.claim
        began_at = min(part.upload.began_at for part in list(save.parts.values()))
        event = commit_ranks(
            claim.journal, claim.lease, claim.origin, dict(save.known), clock=self._clock, began_at=began_at or None
        )
        record = save.commit()
        if record is None:
            raise StoreError(f"{event.manifest} was committed and is not in the journal", kind="unsettled")
        return record

    def _committed(self, save: CommonSave, record: CheckpointRecord) -> None:
        event, parts = record.event, self._seal(save)
        save.ranks.forget(save.step)
        for part in parts:
            part.writer.committed(event.manifest)
            still = read_sequence(part.upload.taken.descriptor) == part.upload.sequence
            self._arena.give_back(part.upload.taken, event.manifest if still else "")
        self._tell(Durable(event, save.attempt))
        self._end(save)  # before the trainers hear of it, and leave: nothing of it is left to be rescued
        for part in parts:
            answer_committed(part.upload, event)
        self._rest()

    def _give_up(self, save: CommonSave, error: UnbrokenError) -> None:
        parts = self._seal(save)
        for part in parts:
            self._arena.give_back(part.upload.taken, "")
        if isinstance(error, FencedError):
            self._tell(Fenced(error.message, save.attempt))
        if isinstance(error, MismatchError):
            self._say_once(error)
        self._end(save)
        reached = [answer_failed(part.upload, error) for part in parts]
        if not any(reached):
            self._tell(Trouble(f"step {save.step}, which the trainers left in memory, is lost: {error.message}"))
        self._rest()

    def _say_once(self, error: UnbrokenError) -> None:
        """It comes again with each save: once for each object is enough."""
        about = re.sub(r"[0-9]+", "#", error.message)
        if error.kind in _RECURRING and about not in self._said:
            self._said.add(about)
            self._tell(Trouble(f"no checkpoint can be made: {error}"))

    def _seal(self, save: CommonSave) -> list[Part]:
        """The parts that a save has, now that it takes no more; it still counts as left."""
        with self._changed:
            if save not in self._ending:
                del self._saves[save.attempt, save.step]
                self._ending.append(save)
            return list(save.parts.values())

    def _end(self, save: CommonSave) -> None:
        with self._changed:
            self._ending.remove(save)
            self._changed.notify_all()

    def _rest(self) -> None:
        if not self.left():
            self._tell(Woken())


def _hopeless(save: CommonSave, reason: str) -> StoreError:
    trouble = f" ({save.trouble})" if save.trouble else ""
    return StoreError(f"step {save.step} was given up: {reason}{trouble}", kind="abandoned")
