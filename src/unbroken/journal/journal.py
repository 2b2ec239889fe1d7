"""Reading and appending to a run's journal. The protocol is specified in docs/spec/journal-v1.md."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import DamagedError, FencedError, FormatError, NotFoundError, StoreError
from unbroken.journal.events import AttemptClaimed, Entry, Event, Origin, decode_entry, encode_entry
from unbroken.journal.state import RunState
from unbroken.store import Store

FORMAT = 1
RUN_KEY = "run.json"
FOLDER = "journal"

_READERS = 16
_APPEND_SECONDS = 300.0
"""An append that still meets new entries after this long gives up: something floods the journal."""


class RunInfo(msgspec.Struct, frozen=True):
    """``run.json``: written once, when the run is made."""

    format: int
    run: str
    """Random id of the run."""
    created_at: float


@dataclass(frozen=True)
class Lease:
    """The right to append: an attempt and the nonce of its claim."""

    attempt: int
    claim: str


def entry_key(n: int) -> str:
    """Key of entry number ``n``."""
    return f"{FOLDER}/{n:011d}.json"


class Journal:
    """A run's journal, replayed. Use :meth:`create` to write and :meth:`open` to read.

    All methods are safe to call from any thread.

    Args:
        store: the run's store.
        info: what ``run.json`` says.
        clock: for the entries' wall times.
    """

    def __init__(self, store: Store, info: RunInfo, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.store = store
        self.info = info
        self.state = RunState()
        self.entries: list[Entry] = []
        self._clock = clock
        self._lock = threading.RLock()

    @classmethod
    def open(cls, store: Store, *, clock: Clock = SYSTEM_CLOCK) -> Journal:
        """Read a run that exists.

        Raises:
            NotFoundError: no run is at this URI.
            FormatError: the run was written by a newer version.
            DamagedError: the journal has a gap.
        """
        try:
            data = store.get(RUN_KEY)
        except NotFoundError as error:
            if error.kind != "object":
                raise
            raise NotFoundError(
                f"there is no run at {store.uri}", kind="run", hint="Check the URI; a run begins with its first attempt"
            ) from error
        journal = cls(store, _decode_info(data, store), clock=clock)
        journal.refresh()
        return journal

    @classmethod
    def create(cls, store: Store, *, clock: Clock = SYSTEM_CLOCK) -> Journal:
        """Open a run for writing; make it where it is new.

        Proves on the way that the store honours create-only puts: ``run.json`` is put a second time, with the bytes it has,
        and the store must refuse. (Same bytes: a store that ignores the condition does no harm.)

        Raises:
            StoreError: the store ignores create-only puts (kind ``create-only``), or failed.
            FormatError: the run was written by a newer version.
        """
        info = RunInfo(FORMAT, secrets.token_hex(8), round(clock.now(), 3))
        data = msgspec.json.encode(info)
        if not store.create(RUN_KEY, data):
            data = store.get(RUN_KEY)
            info = _decode_info(data, store)
        if store.create(RUN_KEY, data):
            raise StoreError(
                f"{store.uri} ignores create-only puts: a second put of {RUN_KEY} with If-None-Match: * was accepted",
                kind="create-only",
                hint="Two attempts could both believe that they own the run. Use a store that honours the condition "
                "(S3, GCS, Azure, a local or NFS folder; many S3 gateways do not)",
            )
        journal = cls(store, info, clock=clock)
        journal.refresh()
        return journal

    def refresh(self) -> list[Entry]:
        """Read the entries that others have added; returns them, oldest first.

        Raises:
            DamagedError: an entry is missing before others that are there.
        """
        with self._lock:
            before = len(self.entries)
            listed = [
                info.key
                for info in self.store.list(FOLDER, after=entry_key(self.state.tail))
                if info.key.endswith(".json")
            ]
            self._read_listed(listed)
            while self._read_next() is not None:
                pass
            return self.entries[before:]

    def claim(self, origin: Origin, *, command: list[str] | None = None) -> Lease:
        """Begin a new attempt, which fences every earlier one.

        Returns:
            the lease to append with.
        """
        claim = secrets.token_hex(8)

        def next_attempt() -> Lease:
            owner = self.state.owner
            return Lease(owner.attempt + 1 if owner else 1, claim)

        with self._lock:
            self.refresh()
            entry = self._append(AttemptClaimed(command or []), origin, next_attempt)
            return Lease(entry.attempt, claim)

    def append(self, event: Event, origin: Origin, lease: Lease) -> Entry:
        """Add an entry.

        Raises:
            FencedError: a later attempt owns the run; nothing was written.
            StoreError: the storage failed; whether the entry is there is not known, and the next append finds out.
        """

        def unless_fenced() -> Lease:
            if self.state.fences(lease.attempt, lease.claim):
                owner = self.state.owner
                assert owner is not None
                raise FencedError(
                    f"attempt {lease.attempt} of {self.store.uri} was replaced by attempt {owner.attempt} "
                    f"on {owner.origin.host}",
                    kind="fenced",
                    hint="This process must stop; the newer attempt goes on",
                )
            return lease

        with self._lock:
            return self._append(event, origin, unless_fenced)

    def _append(self, event: Event, origin: Origin, lease: Callable[[], Lease]) -> Entry:
        nonce = secrets.token_hex(8)
        deadline = self._clock.monotonic() + _APPEND_SECONDS
        while self._clock.monotonic() < deadline:
            held = lease()
            entry = Entry(
                self.state.tail + 1, held.attempt, held.claim, nonce, round(self._clock.now(), 3), origin, event
            )
            if self.store.create(entry_key(entry.n), encode_entry(entry)):
                self._apply(entry)
                return entry
            found = self._read_next()
            if found is not None and found.nonce == nonce:  # our own put; only its reply was lost
                return found
        raise StoreError(
            f"no entry could be added to {self.store.uri} within {_APPEND_SECONDS:.0f} s: others keep writing",
            kind="contention",
        )

    def _read_listed(self, keys: list[str]) -> None:
        wanted = [entry_key(self.state.tail + 1 + i) for i in range(len(keys))]
        if keys != wanted:
            missing = next(want for want, key in zip(wanted, keys, strict=True) if want != key)
            raise DamagedError(
                f"{missing} is missing from the journal of {self.store.uri}", kind="journal-gap",
                hint="Restore the object from the bucket's versions; nothing in a journal may be deleted",
            )  # fmt: skip
        if not keys:
            return
        with ThreadPoolExecutor(min(_READERS, len(keys)), thread_name_prefix="unbroken-journal") as pool:
            for key, data in zip(keys, pool.map(self.store.get, keys), strict=True):
                self._apply(decode_entry(data, key))

    def _read_next(self) -> Entry | None:
        key = entry_key(self.state.tail + 1)
        try:
            data = self.store.get(key)
        except NotFoundError:
            return None
        entry = decode_entry(data, key)
        self._apply(entry)
        return entry

    def _apply(self, entry: Entry) -> None:
        self.state.apply(entry)
        self.entries.append(entry)


def _decode_info(data: bytes, store: Store) -> RunInfo:
    try:
        info = msgspec.json.decode(data, type=RunInfo)
    except msgspec.MsgspecError as error:
        raise FormatError(
            f"{RUN_KEY} in {store.uri} is not a run description this version can read ({error})", kind="run"
        ) from error
    if info.format > FORMAT:
        raise FormatError(
            f"{store.uri} was written in format {info.format}, and this version reads up to {FORMAT}",
            kind="newer-format", hint="Install a newer unbroken",
        )  # fmt: skip
    return info



