"""The ranks of one attempt: opened, restored, stopped and finished together, without a collective."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from unbroken.checkpoint import Manifest, newest_first
from unbroken.clock import Clock
from unbroken.errors import DamagedError, UnbrokenError
from unbroken.journal import CheckpointRecord, Journal, RunState
from unbroken.journal.journal import RunInfo
from unbroken.store import Store, open_store
from unbroken.training.agent_link import StopRequest, named_error
from unbroken.training.agreement import SAVE, STOP, Agreement
from unbroken.training.link import Link
from unbroken.training.rank_store import RankStore
from unbroken.training.ranks import Ranks
from unbroken.training.team import Team

_log = logging.getLogger("unbroken")
T = TypeVar("T")

_OPEN_SECONDS = 2700.0
"""For rank 0 to claim: its agent may first make durable what an earlier trainer left, and ask a store that fails."""
_RESTORE_SECONDS = 3600.0
"""Until the slowest rank has read its part."""
_FINISH_SECONDS = 120.0
_CLOSE_SECONDS = 10.0
_FAILED_SECONDS = 2.0
"""The same for a rank that failed: the others are ended, and say no good-bye."""


class _Failed(msgspec.Struct, frozen=True, tag="failed"):
    """An error that a rank met, for the others."""

    error: str
    message: str
    kind: str = ""
    hint: str = ""

    @classmethod
    def of(cls, error: BaseException) -> _Failed:
        if isinstance(error, UnbrokenError):
            return cls(type(error).__name__, error.message, error.kind, error.hint)
        return cls("StoreError", f"{type(error).__name__}: {error}", "rank")

    def of_rank(self, rank: int) -> UnbrokenError:
        return named_error(self.error, f"rank {rank}: {self.message}", self.kind, self.hint)


class _Claimed(msgspec.Struct, frozen=True, tag="claimed"):
    """The attempt that rank 0 has claimed, and what is known of the run."""

    attempt: int
    claim: str
    info: RunInfo


class _Older(msgspec.Struct, frozen=True, tag="older"):
    """The checkpoints that a restore must know of, whichever it takes."""

    records: list[CheckpointRecord]


class _Candidate(msgspec.Struct, frozen=True, tag="candidate"):
    """The checkpoint to try next; none: nothing is left."""

    record: CheckpointRecord | None


class _Read(msgspec.Struct, frozen=True, tag="read"):
    """A rank has read its part of the candidate, verified."""


class _Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The journal says that the run is finished."""


_Word = _Failed | _Claimed | _Older | _Candidate | _Read | _Finished
_DECODER: msgspec.json.Decoder[_Word] = msgspec.json.Decoder(_Word)


def form_team(ranks: Ranks, *, clock: Clock) -> Team:
    """The team of this process.

    Raises:
        StoreError: the other ranks were not met in time.
    """
    return Team(ranks, clock=clock) if ranks.world_size == 1 else ManyRanks(ranks, clock=clock)


class ManyRanks(Team):
    """The team of one of several ranks. They meet in a store of theirs (:class:`RankStore`).

    Raises:
        StoreError: the others were not met in time.
    """

    def __init__(self, ranks: Ranks, *, clock: Clock) -> None:
        super().__init__(ranks, clock=clock)
        self._clock = clock
        self._store = RankStore.open(ranks.rank, ranks.world_size)
        self._agreement: Agreement | None = None

    def open(self, link: Link) -> Journal:
        if not self.chief:
            return self._join(link)
        try:
            link.open()
            journal = link.open_journal()
        except BaseException as error:
            self._tell("claim", _Failed.of(error))
            raise
        self._tell("claim", _Claimed(link.attempt, link.claim, journal.info))
        return journal

    def watch(self, step: int, on_lost: Callable[[str], None]) -> None:
        self.gate = self._agreement = Agreement(
            self._store, self.ranks.rank, self.ranks.world_size, step=step, clock=self._clock, on_lost=on_lost
        )

    def restorable(self, state: RunState) -> RunState:
        if self.chief:
            kept = [record for record in state.checkpoints if not _trained(state, record)]
            self._tell("older", _Older(kept))
            return state
        said = self._hear("older", _OPEN_SECONDS)
        return RunState(checkpoints=said.records if isinstance(said, _Older) else [])

    def restore_newest(
        self,
        store: Store,
        state: RunState,
        load: Callable[[CheckpointRecord, Manifest], T],
        *,
        read_manifest: Callable[[CheckpointRecord], Manifest],
        on_damaged: Callable[[CheckpointRecord, DamagedError], None],
    ) -> tuple[CheckpointRecord, Manifest, T] | None:
        """Rank 0 proposes, newest first; what any rank finds damaged is passed over by all.

        Raises:
            UnbrokenError: what a rank met that is no damage, on all ranks; or all checkpoints are damaged.
        """
        tried = 0
        for record in self._candidates(state):
            found = self._try(tried, record, lambda record: _read(record, read_manifest, load))
            if not isinstance(found, DamagedError):
                return record, *found
            if self.chief:
                on_damaged(record, found)
            tried += 1
        if tried:
            raise DamagedError(
                f"all {tried} checkpoints of {store.uri} are damaged", kind="all-damaged",
                hint="Bring objects back from the bucket's versions, or begin a new run at another URI",
            )  # fmt: skip
        return None

    def propose_stop(self, stop: StopRequest) -> None:
        if self._agreement is not None:
            data = {"source": stop.source, "reason": stop.reason, "until": stop.deadline}
            self._agreement.propose(STOP, data)

    def propose_save(self) -> None:
        if self._agreement is not None:
            self._agreement.propose(SAVE)

    def await_finish(self) -> None:
        try:
            if self.chief:
                self._tell("finish", _Finished())
            else:
                self._hear("finish", _FINISH_SECONDS)
        except UnbrokenError as error:
            _log.debug("not heard that the run is finished: %s", error)

    def close(self, reason: str = "") -> None:
        try:
            if self._agreement is not None:
                self._agreement.close(_FAILED_SECONDS if reason else _CLOSE_SECONDS, reason=reason)
            self._store.close()
        except UnbrokenError as error:
            _log.debug("leaving the other ranks: %s", error)

    def _join(self, link: Link) -> Journal:
        said = self._hear("claim", _OPEN_SECONDS)
        if not isinstance(said, _Claimed):
            raise _unexpected(said)
        link.join(said.attempt, said.claim)
        link.open()
        # Not replayed: of a thousand ranks each would read all of it, and this one writes nothing there.
        return Journal(open_store(link.uri), said.info, clock=self._clock)

    def _candidates(self, state: RunState) -> Iterator[CheckpointRecord]:
        """What rank 0 proposes, one after another."""
        own = newest_first(state) if self.chief else iter(())
        number = 0
        while True:
            if self.chief:
                record = next(own, None)
                self._tell(f"candidate/{number}", _Candidate(record))
            else:
                said = self._hear(f"candidate/{number}", _RESTORE_SECONDS)
                record = said.record if isinstance(said, _Candidate) else None
            if record is None:
                return
            yield record
            number += 1

    def _try(self, number: int, record: CheckpointRecord, read: Callable[[CheckpointRecord], T]) -> T | DamagedError:
        """What this rank has read, where all ranks could read their part; the damage that one of them met otherwise.

        Raises:
            UnbrokenError: a rank met something else.
        """
        mine: T | None = None
        own: BaseException | None = None
        try:
            mine = read(record)
            said: _Word = _Read()
        except BaseException as error:  # noqa: BLE001 - the others wait for our word; then it is raised
            own, said = error, _Failed.of(error)
        key = f"read/{number}"
        words = [_DECODER.decode(word) for word in self._store.gather(key, msgspec.json.encode(said), _RESTORE_SECONDS)]
        failed = [(rank, word) for rank, word in enumerate(words) if isinstance(word, _Failed)]
        if own is not None and not isinstance(own, DamagedError):
            raise own
        for other in (word.of_rank(rank) for rank, word in failed):
            if not isinstance(other, DamagedError):
                raise other
        if isinstance(own, DamagedError):
            return own
        if failed:
            rank, word = failed[0]
            return DamagedError(f"rank {rank}: {word.message}", kind=word.kind, hint=word.hint)
        return mine  # type: ignore[return-value]

    def _tell(self, key: str, word: _Word) -> None:
        self._store.set(key, msgspec.json.encode(word))

    def _hear(self, key: str, seconds: float) -> _Word:
        """What rank 0 says.

        Raises:
            UnbrokenError: that it has failed; of the same class.
        """
        said = _DECODER.decode(self._store.get(key, seconds))
        if isinstance(said, _Failed):
            raise said.of_rank(0)
        return said


def _read(
    record: CheckpointRecord,
    read_manifest: Callable[[CheckpointRecord], Manifest],
    load: Callable[[CheckpointRecord, Manifest], T],
) -> tuple[Manifest, T]:
    manifest = read_manifest(record)
    return manifest, load(record, manifest)


def _trained(state: RunState, record: CheckpointRecord) -> bool:
    attempt = state.attempts.get(record.attempt)
    return attempt is not None and attempt.trains


def _unexpected(said: object) -> UnbrokenError:
    return UnbrokenError(f"rank 0 said {said!r} where its claim was expected", kind="ranks")
