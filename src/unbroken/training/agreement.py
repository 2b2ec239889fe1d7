"""Ranks agree to save or to stop after the same step, without a collective and outside of any signal handler."""

from __future__ import annotations

import atexit
import math
import platform
import threading
import weakref
from collections.abc import Callable
from typing import Any

from unbroken.clock import Clock
from unbroken.errors import ConfigError, StoreError
from unbroken.training.agreement_beats import Silence
from unbroken.training.agreement_gate import SAVE, STOP, Gate, Outcome
from unbroken.training.agreement_host import HOST_BEAT, NOTES, AgreementHost, Inbox, beat_key, mailbox
from unbroken.training.agreement_messages import (
    Answer,
    Bye,
    Ended,
    Farewell,
    HostLeaves,
    Lost,
    Mail,
    Note,
    Opened,
    Propose,
    decode_mail,
    encode,
)
from unbroken.training.agreement_stream import Reader, unexpected, write
from unbroken.training.rank_store import RankStore

__all__ = ["SAVE", "STOP", "Agreement", "Outcome"]

_MARGIN_SECONDS = 1.0


class Agreement(Gate):
    """One rank's part: a thread answers rounds, beats, and listens; the loop passes the :class:`Gate`, which this is.

    A *round* is opened for a save (by rank 0) or a stop (by any rank). Each thread answers with the step that its loop
    has begun, from then on the loop begins no other, and the result is the largest of the answers: who is behind
    trains on up to it, nobody has gone beyond. The threads answer while the loops are inside of collectives. A round
    that some rank does not answer ends without a result.

    Every rank makes one, at about the same time; ``close`` ends it. What the loop must do is written at :class:`Gate`.

    Args:
        store: the ranks' store, which must stay open until :meth:`close` has returned.
        rank, world_size: which of how many this is.
        step: the completed steps at the start.
        clock: for waits.
        on_lost: called once, from the thread, with a sentence, when the attempt cannot go on: a rank is silent, ended
            with an error, or the store is gone. The loop may be in a collective that never ends. After it
            :meth:`enter` raises, too.
        answer_seconds: after which a round ends without a result.
        beat_seconds: how often each rank says that it lives.
        lost_seconds: after how long a silent rank, or a store that does not answer, is lost.
    """

    def __init__(
        self,
        store: RankStore,
        rank: int,
        world_size: int,
        *,
        clock: Clock,
        on_lost: Callable[[str], None],
        step: int = 0,
        answer_seconds: float = 10.0,
        beat_seconds: float = 5.0,
        lost_seconds: float = 60.0,
    ) -> None:
        super().__init__(step, clock=clock, wait_seconds=answer_seconds + lost_seconds)
        self.rank, self.world_size = rank, world_size
        self._store, self._on_lost = store, on_lost
        self._beat_seconds, self._lost_seconds = beat_seconds, lost_seconds
        self._host = (
            AgreementHost(store, clock=clock, answer_seconds=answer_seconds, beat_seconds=beat_seconds,
                          lost_seconds=lost_seconds) if rank == 0 else None
        )  # fmt: skip
        self._inbox: Inbox[Note | Mail | Exception] = Inbox(clock)
        self._host_silence = Silence(beat_seconds=beat_seconds, lost_seconds=lost_seconds)
        self._beats = 0
        self._told = False  # that all is lost
        self._leaving = False
        self._parting = False
        self._end_at = math.inf
        self._asked: Propose | None = None  # a stop whose round has not begun
        self._stop_opened = False
        self._done = False
        self._reader = Reader(store, mailbox(rank), counted=False, on_message=self._heard, on_error=self._inbox.put)
        self._thread = threading.Thread(target=self._run, name="unbroken-agreement", daemon=True)
        self._thread.start()
        atexit.register(_close_at_exit, weakref.ref(self))

    def propose(self, kind: str, data: dict[str, Any] | None = None) -> None:
        """Ask all ranks to do something after the same step; from any thread, returns at once.

        Where nobody can be asked any more (the others have left, or are lost) a stop comes back from :meth:`enter` with
        ``agreed=False``, and a save is left out.

        Args:
            kind: ``"save"``, on rank 0 alone, or ``"stop"``.
            data: goes to all ranks with the outcome; must fit JSON. ``until``, wall-clock seconds, says by when a stop
                must be done.

        Raises:
            ConfigError: another kind, or a save by another rank.
        """
        if kind not in {SAVE, STOP} or (kind == SAVE and self.rank != 0):
            raise ConfigError(f"rank {self.rank} cannot propose {kind!r}", kind="ranks")
        note = Propose(kind, data or {})
        encode(note)  # what JSON cannot hold is the caller's error, not the thread's
        self._inbox.put(note)
        if self._done:  # there is no thread any more to see it
            self._decline_all()

    def close(self, seconds: float = 60.0, *, reason: str = "") -> None:
        """Say good-bye and end the threads.

        Rank 0 waits for the good-byes of the others, ``seconds`` at most, and answers them meanwhile; whom it leaves
        behind then goes on without agreement. The others return as soon as rank 0 has heard them.

        Args:
            reason: why this rank ends though the training does not, such as an error; the others are told to end as
                well. "": it leaves in order.
        """
        with self._lock:
            if self._leaving:
                return
            self._leaving = True
        leave_by = self._clock.monotonic() + max(0.0, seconds)
        self._end_at = leave_by + _MARGIN_SECONDS
        named = f"rank {self.rank} ({platform.node()}) ended: {reason}" if reason else ""
        self._inbox.put(Bye(self.rank, self.begun, named))
        self._thread.join(max(0.0, seconds) + 2 * _MARGIN_SECONDS)
        if self._host:
            self._host.close(leave_by - self._clock.monotonic())
        self._reader.join(_MARGIN_SECONDS)

    def _heard(self, text: bytes) -> bool:
        mail = decode_mail(text)
        self._inbox.put(mail)
        return not isinstance(mail, Farewell)

    def _run(self) -> None:
        beat_at = self._clock.monotonic()
        while not self._done and self._clock.monotonic() < self._end_at:
            try:
                if self._clock.monotonic() >= beat_at:
                    beat_at = self._clock.monotonic() + self._beat_seconds
                    self._beat()
                for item in self._inbox.take(min(beat_at, self._end_at) - self._clock.monotonic()):
                    self._deal_with(item)
            except Exception as error:  # noqa: BLE001 - its owner hears of it by on_lost and enter
                self._break(error)
        self._done = True
        self._decline_all()

    def _deal_with(self, item: Note | Mail | Exception) -> None:
        if isinstance(item, Exception):
            raise item
        if isinstance(item, Opened):
            if item.kind == STOP:
                self._asked, self._stop_opened = None, True
            self._write(Answer(item.round, self.rank, self.open_round(item.round, item.kind, item.data)))
        elif isinstance(item, Ended):
            self.end_round(item.round, item.step, item.data, item.missing)
        elif isinstance(item, Lost):
            self._lose(StoreError(item.reason, kind="ranks"))
        elif isinstance(item, HostLeaves):
            self._part()
        elif isinstance(item, Farewell):
            self._done = True
        elif isinstance(item, Propose):
            self._ask(item)
        elif isinstance(item, Bye):
            self._write(item)

    def _ask(self, wanted: Propose) -> None:
        if self.alone:
            self._decline(wanted)
            return
        if wanted.kind == STOP and not self._stop_opened:
            self._asked = wanted
        self._write(wanted)

    def _part(self) -> None:
        """Rank 0 leaves in order: so does this thread, and the loop goes on without it."""
        self._parting = True
        self._give_up_asking()
        self._write(Bye(self.rank, self.begun))

    def _give_up_asking(self, error: StoreError | None = None) -> None:
        self.go_alone(error)
        asked, self._asked = self._asked, None
        if asked:  # a stop of which nobody has heard, or whose round never came
            self._decline(asked)

    def _decline_all(self) -> None:
        for item in self._inbox.take(0.0):
            if isinstance(item, Propose):
                self._decline(item)

    def _decline(self, wanted: Propose) -> None:
        if wanted.kind == STOP:
            self.stop_alone(wanted.data)
        else:
            self.left_out += 1

    def _write(self, note: Note) -> None:
        write(self._store, NOTES, encode(note), self._lost_seconds)

    def _beat(self) -> None:
        if self.alone:
            return
        self._beats += 1
        beat = f"{self._beats} {platform.node()}".encode()
        self._store.put_many([beat_key(self.rank)], [beat], self._lost_seconds)
        host = self._store.look([HOST_BEAT], self._lost_seconds)
        if self._host_silence.look({0: host[0] if host else b""}, self._clock.monotonic()):
            raise StoreError(f"it was not heard of for {self._lost_seconds:g} s", kind="ranks")

    def _break(self, error: Exception) -> None:
        if self._leaving or self._parting:  # the host may be gone before this rank has heard its farewell
            self._give_up_asking()
            self._done = True
        elif isinstance(error, StoreError):
            message = f"rank 0, which leads the agreement of the ranks, is lost: {error.message}"
            self._lose(StoreError(message, kind="ranks", hint=error.hint))
        else:
            self._lose(unexpected(error))

    def _lose(self, error: StoreError) -> None:
        self._give_up_asking(error)
        if self._told or self._leaving:
            return
        self._told = True
        self._on_lost(str(error))


def _close_at_exit(agreement: weakref.ref[Agreement]) -> None:
    """A process that ends without :meth:`Agreement.close` has not left in order.

    The others are told. And its threads must be out of C++ when the interpreter goes, or the process aborts.
    """
    still_there = agreement()
    if still_there is not None:
        still_there.close(_MARGIN_SECONDS, reason="its process ended without closing the run")
