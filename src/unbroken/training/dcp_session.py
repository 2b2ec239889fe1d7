"""A writer's attempt of the run: claimed once, by the rank that coordinates, whatever process a save runs in."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from unbroken.checkpoint import load_manifest, load_rank_part
from unbroken.checkpoint.rank_writer import RankWriter
from unbroken.checkpoint.writer import CheckpointWriter
from unbroken.clock import Clock
from unbroken.errors import ConfigError, DamagedError, FencedError, StoreError
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.journal.events import AttemptEnded, Note
from unbroken.store import open_store

_log = logging.getLogger("unbroken")

_TOPIC = "dcp"
"""Of the note that says whose claim it was."""


@dataclass
class Share:
    """What the coordinator says to a rank in the plan that it gives back."""

    step: int
    rank: int
    world_size: int
    lease: Lease
    taken: bool = False
    """Set by the rank. A plan that comes with it set was kept by the planner since an earlier save."""


class Session:
    """The run as one rank's writer knows it. Saves may come from several threads, one at a time.

    Args:
        uri: of the run.
        token: of the writer. Copies of it in other processes have the same, and share its attempt.
    """

    def __init__(self, uri: str, token: str, *, clock: Clock) -> None:
        self.lock = threading.RLock()
        self.origin = Origin(host=socket.gethostname(), pid=os.getpid())
        self._uri = uri
        self._token = token
        self._clock = clock
        self._journal: Journal | None = None
        self._claimed: Lease | None = None
        self._writers: dict[tuple[Lease, int, int], RankWriter] = {}
        self._whole: CheckpointWriter | None = None
        self.share: Share | None = None
        """The latest."""
        self._seen = 0
        """Number of the journal entry of the newest commit that ``_whole`` knows."""

    @property
    def journal(self) -> Journal:
        """Opened for reading, if not for writing before."""
        if self._journal is None:
            self._journal = Journal.open(open_store(self._uri), clock=self._clock)
        return self._journal

    @property
    def lease(self) -> Lease:
        """What :meth:`begin` claimed.

        Raises:
            StoreError: it has not.
        """
        if self._claimed is None:
            raise StoreError(f"no attempt of {self._uri} was claimed", kind="no-claim")
        return self._claimed

    def begin(self, step: int) -> None:
        """Own the run, for a save of ``step``: claim an attempt the first time, and make sure of it later.

        Raises:
            FencedError: another attempt has begun since.
            ConfigError: the attempt has committed this step, or a later one.
            UnbrokenError: the run cannot be opened for writing.
        """
        with self.lock:
            if self._claimed is None:
                self._journal = Journal.create(open_store(self._uri, create=True), clock=self._clock)
                self._claimed = self._ours(self._journal) or self._claim(self._journal)
            else:
                self.journal.require(self._claimed)
            self.demand_later(step)

    def demand_later(self, step: int) -> None:
        """Refuse a step that does not follow what the attempt has committed.

        Raises:
            ConfigError: says what was committed.
        """
        newest = self.newest()
        if newest is not None and newest.step >= step:
            raise ConfigError(
                f"step {step} was to be saved, and this writer has committed step {newest.step}", kind="step",
                hint="Steps of one writer go up; a program that went back to an older checkpoint makes a new one",
            )  # fmt: skip

    def _claim(self, journal: Journal) -> Lease:
        lease = journal.claim(self.origin, command=list(sys.argv))
        journal.append(Note(_TOPIC, "torch.distributed.checkpoint writes", {"writer": self._token}), self.origin, lease)
        return lease

    def _ours(self, journal: Journal) -> Lease | None:
        """The attempt that owns the run, if a copy of this writer claimed it."""
        owner = journal.state.owner
        if owner is None:
            return None
        for entry in reversed(journal.state.notes):
            note = entry.event
            owned = (entry.attempt, entry.claim) == (owner.attempt, owner.claim)
            if owned and isinstance(note, Note) and note.topic == _TOPIC and note.data.get("writer") == self._token:
                return Lease(owner.attempt, owner.claim)
        return None

    def newest(self, lease: Lease | None = None) -> CheckpointRecord | None:
        """What the attempt committed last, as far as the journal was read."""
        attempt = self.journal.state.attempts.get((lease or self.lease).attempt)
        return attempt.committed[-1] if attempt is not None and attempt.committed else None

    def whole_writer(self) -> CheckpointWriter:
        """For the only rank. It knows its own commits; those of a copy in another process it learns here."""
        if self._whole is None:
            self._whole = CheckpointWriter(self.journal, self.lease, self.origin, clock=self._clock)
        newest = self.newest()
        if newest is not None and newest.n != self._seen:
            with _tolerating_damage(newest):
                self._whole.continue_from(newest, load_manifest(self.journal.store, newest))
        return self._whole

    def written(self) -> None:
        """The only rank has committed."""
        newest = self.newest()
        self._seen = newest.n if newest is not None else 0

    def rank_writer(self, lease: Lease, rank: int, world_size: int) -> RankWriter:
        """For one of several ranks. It goes on from what the attempt committed last, and refers to its packs."""
        key = lease, rank, world_size
        if key not in self._writers:
            self._writers[key] = RankWriter(
                self.journal, lease, self.origin, rank=rank, world_size=world_size, clock=self._clock
            )
        self.journal.refresh()
        if (parent := self.newest(lease)) is not None:
            with _tolerating_damage(parent):
                self._writers[key].continue_from(parent, load_rank_part(self.journal.store, parent, rank))
        return self._writers[key]

    def close(self) -> None:
        """Journal the end of the attempt, if it was claimed here."""
        with self.lock:
            if self._claimed is None:
                return
            newest = self.newest()
            end = AttemptEnded("left", newest.step if newest is not None else -1)
            with suppress(FencedError):  # the attempt that replaced this one has said so
                self.journal.append(end, self.origin, self._claimed)


@contextmanager
def _tolerating_damage(parent: CheckpointRecord) -> Iterator[None]:
    """A damaged parent is one to which nothing can refer: that must not keep the next save from being whole."""
    try:
        yield
    except DamagedError as error:
        _log.warning("unbroken: step %d is damaged, and nothing refers to it any more: %s", parent.step, error)


_COPIES: dict[str, Session] = {}
_COPIES_LOCK = threading.Lock()


def session_of_copy(uri: str, token: str, *, clock: Clock) -> Session:
    """The session of a writer that came from another process. Each save brings a new copy; all have one session."""
    with _COPIES_LOCK:
        return _COPIES.setdefault(token, Session(uri, token, clock=clock))
