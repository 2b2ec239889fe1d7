"""Rank 0's side of an agreement: runs the rounds, hears the heartbeats, tells all ranks."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from unbroken.clock import Clock
from unbroken.training.agreement_beats import Silence
from unbroken.training.agreement_messages import (
    Answer,
    Bye,
    Farewell,
    Halt,
    HostLeaves,
    Lost,
    Mail,
    Note,
    Propose,
    decode_note,
    encode,
)
from unbroken.training.agreement_rounds import Rounds
from unbroken.training.agreement_stream import Reader, skip, stream_key, unexpected, write
from unbroken.training.rank_store import RankStore

T = TypeVar("T")

NOTES = "notes"
HOST_BEAT = "beat/host"
_LAST_WORDS_SECONDS = 2.0  # for ranks that were told that the host leaves, to leave as well


def mailbox(rank: int) -> str:
    """The stream of what is sent to ``rank``."""
    return f"mail/{rank}"


def beat_key(rank: int) -> str:
    """Where ``rank`` writes its beat: a count, a space, and its host's name."""
    return f"beat/{rank}"


class Inbox(Generic[T]):
    """What a thread has to deal with, from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._items: deque[T] = deque()
        self._event = threading.Event()

    def put(self, item: T) -> None:
        """Add one."""
        self._items.append(item)
        self._event.set()

    def take(self, seconds: float) -> list[T]:
        """All that is there; waits up to ``seconds`` for the first."""
        if not self._items and seconds > 0:
            self._clock.wait(self._event, seconds)
        self._event.clear()  # before the items are taken: what comes after sets it again
        taken = []
        while self._items:
            taken.append(self._items.popleft())
        return taken


class AgreementHost:
    """One thread that owns :class:`Rounds` and sends what comes of them, and a reader of the notes to it.

    Mail goes to one key of each rank's own, many in a request: to tell all ranks is O(world) work, and each of them
    blocks on its own key, without asking again and again. So does the host, on the notes.

    Args:
        store: rank 0's.
        answer_seconds, beat_seconds, lost_seconds: as of :class:`~unbroken.training.agreement.Agreement`.
    """

    def __init__(
        self, store: RankStore, *, clock: Clock, answer_seconds: float, beat_seconds: float, lost_seconds: float
    ) -> None:
        self._store, self._clock = store, clock
        self._beat_seconds, self._lost_seconds = beat_seconds, lost_seconds
        self._rounds = Rounds(store.world_size, answer_seconds=answer_seconds)
        self._silence = Silence(beat_seconds=beat_seconds, lost_seconds=lost_seconds)
        self._inbox: Inbox[Note | Exception] = Inbox(clock)
        self._sent = [0] * store.world_size
        self._beats = 0
        self._stuck = 0  # the note that was waited for at the last beat though its number is taken
        self._lost = False
        self._leave_by = math.inf
        ranks = range(store.world_size)
        store.put_many([*map(beat_key, ranks), HOST_BEAT], [b""] * (len(ranks) + 1), lost_seconds)
        self._reader = Reader(store, NOTES, counted=True, on_message=self._heard, on_error=self._inbox.put)
        self._thread = threading.Thread(target=self._run, name="unbroken-agreement-host", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> None:
        """End when every rank has left or the attempt is lost; after ``seconds`` tell those that are left, and end."""
        self._leave_by = self._clock.monotonic() + max(0.0, seconds)
        self._inbox.put(Halt())
        self._thread.join(max(0.0, seconds) + 2 * _LAST_WORDS_SECONDS)
        self._reader.join(1.0)

    def _heard(self, text: bytes) -> bool:
        note = decode_note(text)
        self._inbox.put(note)
        return not isinstance(note, Halt)

    def _run(self) -> None:
        try:
            self._serve()
            write(self._store, NOTES, encode(Halt()), self._lost_seconds)  # the reader ends by it
        except Exception as error:  # noqa: BLE001 - every rank is told, rank 0's own thread among them
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with contextlib.suppress(Exception):  # where the store is gone the others see that themselves
            self._send([Lost(f"rank 0 cannot lead the agreement any more: {unexpected(error).message}")])

    def _serve(self) -> None:
        beat_at = self._clock.monotonic()
        end_at = math.inf
        while self._rounds.present and (now := self._clock.monotonic()) < end_at:
            if now >= beat_at:
                beat_at = now + self._beat_seconds
                self._beat(now)
            self._send(self._rounds.pass_time(now))
            if end_at == math.inf and (self._leave_by <= now or (self._lost and self._leave_by < math.inf)):
                end_at = now + _LAST_WORDS_SECONDS
                self._send([HostLeaves()])
            leave_by = self._leave_by if end_at == math.inf else end_at
            for note in self._inbox.take(min(beat_at, self._rounds.due, leave_by) - self._clock.monotonic()):
                self._deal_with(note)

    def _deal_with(self, note: Note | Exception) -> None:
        now = self._clock.monotonic()
        if isinstance(note, Exception):
            raise note
        if isinstance(note, Propose):
            self._send(self._rounds.propose(note.kind, note.data, now))
        elif isinstance(note, Answer):
            self._send(self._rounds.answer(note.round, note.rank, note.step, now))
        elif isinstance(note, Bye):
            self._send([Farewell()], [note.rank])
            sent = self._rounds.leave(note.rank, note.step, now)
            if note.reason:
                self._lose(note.reason)
            self._send(sent)

    def _beat(self, now: float) -> None:
        self._beats += 1
        present = self._rounds.present
        self._store.put_many([HOST_BEAT], [b"%d" % self._beats], self._lost_seconds)
        beats = self._store.look([beat_key(rank) for rank in present], self._lost_seconds) or []
        lost = self._silence.look(dict(zip(present, beats, strict=False)), now)
        if lost and not self._lost:
            named = [f"rank {rank}{_host_of(beats[present.index(rank)])}" for rank in lost[:8]]
            more = f" and {len(lost) - 8} more ranks" if len(lost) > 8 else ""
            verb = "was" if len(lost) == 1 else "were"
            self._lose(f"{', '.join(named)}{more} {verb} not heard of for {self._lost_seconds:g} s")
        self._unstick()

    def _unstick(self) -> None:
        """A writer that died between taking a number and writing must not hold up the others for ever."""
        waits_for = self._reader.next
        if self._store.count(f"{NOTES}/count", 0, self._lost_seconds) < waits_for:
            waits_for = 0
        elif waits_for == self._stuck:
            skip(self._store, NOTES, waits_for, self._lost_seconds)
        self._stuck = waits_for

    def _lose(self, reason: str) -> None:
        self._lost = True
        self._send([Lost(reason)])

    def _send(self, mails: Iterable[Mail], ranks: Sequence[int] | None = None) -> None:
        for mail in mails:
            to = self._rounds.present if ranks is None else ranks
            for rank in to:
                self._sent[rank] += 1
            if to:
                keys = [stream_key(mailbox(rank), self._sent[rank]) for rank in to]
                self._store.put_many(keys, [encode(mail)] * len(keys), self._lost_seconds)


def _host_of(beat: bytes) -> str:
    host = beat.decode(errors="replace").partition(" ")[2]
    return f" ({host})" if host else ""
