"""Reading and appending to a run's journal. The protocol is specified in docs/spec/journal-v1.md."""

from __future__ import annotations

import random
import re
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import msgspec

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import DamagedError, FencedError, FormatError, NotFoundError, StoreError
from unbroken.journal.events import FORMAT, AttemptClaimed, Decided, Entry, Event, Origin, decode_entry, encode_entry
from unbroken.journal.state import RunState
from unbroken.store import Store

RUN_KEY = "run.json"
FOLDER = "journal"

_ENTRY_KEY = re.compile(rf"{FOLDER}/(\d{{11}})\.json")
_READERS = 16
_PAUSE_SECONDS = (0.02, 0.2)
"""Between two tries of an append that was refused although nothing is there yet: someone's put is under
way."""
_APPEND_SECONDS = 300.0
"""An append that still meets new entries after this long gives up: something floods the journal."""


class RunInfo(msgspec.Struct, frozen=True):
    """``run.json``: written once, when the run is made."""

    format: int
    run: str
    """Random id of the run."""
    created_at: float


class _Format(msgspec.Struct):
    """As much of ``run.json`` as every format has."""

    format: Annotated[int, msgspec.Meta(ge=1)]


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
            DamagedError: the journal has a gap, or an entry that is none.
        """
        data = _get_or_none(store, RUN_KEY)
        if data is None:
            raise NotFoundError(
                f"there is no run at {store.uri}", kind="run", hint="Check the URI; a run begins with its first attempt"
            )
        journal = cls(store, _decode_info(data, store), clock=clock)
        journal.refresh()
        return journal

    @classmethod
    def create(cls, store: Store, *, clock: Clock = SYSTEM_CLOCK) -> Journal:
        """Open a run for writing; make it where it is new.

        Proves on the way that the store honours create-only puts: ``run.json`` is put a second time, with
        the bytes it has, and the store must refuse. (Same bytes: a store that ignores the condition does no
        harm.)

        Raises:
            StoreError: the store ignores create-only puts (kind ``create-only``), or failed.
            FormatError: the run was written by a newer version.
            DamagedError: the journal has a gap, or an entry that is none.
        """
        # What is there is read before anything is put: a store that ignores the condition would overwrite it.
        data = _get_or_none(store, RUN_KEY)
        if data is None:
            data = msgspec.json.encode(RunInfo(FORMAT, secrets.token_hex(8), round(clock.now(), 3)))
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

        An append may have read some of them before. To follow a journal and miss none, remember a position in
        :attr:`entries`.

        Raises:
            DamagedError: an entry is missing before others that are there.
        """
        with self._lock:
            before = len(self.entries)
            listed = self.store.list(FOLDER, after=entry_key(self.state.tail))
            numbers = [int(match[1]) for info in listed if (match := _ENTRY_KEY.fullmatch(info.key))]
            # A listing taken while others append may lack an entry and yet show a later one: it says only
            # how far to read.
            self._read_to(max(numbers, default=self.state.tail))
            while self._read_next() is not None:
                pass
            return self.entries[before:]

    def claim(
        self,
        origin: Origin,
        *,
        command: list[str] | None = None,
        purpose: str = "",
        unless: Callable[[RunState], None] | None = None,
    ) -> Lease:
        """Begin a new attempt, which fences every earlier one.

        Args:
            purpose: what for, where that is not training.
            unless: refuses, by raising, to claim the run in this state. It is asked about the very state that the
                claim would follow: nothing can come between.

        Returns:
            the lease to append with.
        """
        claim = secrets.token_hex(8)

        def next_attempt() -> Lease:
            if unless is not None:
                unless(self.state)
            owner = self.state.owner
            return Lease(owner.attempt + 1 if owner else 1, claim)

        with self._lock:
            self.refresh()
            entry = self._append(AttemptClaimed(command or [], purpose), origin, next_attempt)
            return Lease(entry.attempt, claim)

    def append(
        self, event: Event, origin: Origin, lease: Lease, *, unless: Callable[[RunState], None] | None = None
    ) -> Entry:
        """Add an entry.

        Args:
            unless: refuses, by raising, to add it to the run in this state. It is asked about the very state that the
                entry would follow: nothing can come between.

        Raises:
            FencedError: a later attempt owns the run; nothing was written.
            StoreError: the storage failed; whether the entry is there is not known, and the next append
            finds out.
        """

        def still() -> Lease:
            held = self._still(lease)
            if unless is not None:
                unless(self.state)
            return held

        with self._lock:
            return self._append(event, origin, still)

    def decide(self, decision: Decided, origin: Origin) -> Entry:
        """Add what a policy decided. No lease is needed: it fences nobody and changes nothing about the attempts.

        Raises:
            StoreError: the storage failed.
        """

        def beside() -> Lease:
            owner = self.state.owner
            return Lease(owner.attempt if owner else 1, "")

        with self._lock:
            return self._append(decision, origin, beside)

    def require(self, lease: Lease) -> None:
        """Read on, and return if ``lease`` still holds the run.

        Raises:
            FencedError: a later attempt owns the run.
        """
        with self._lock:
            self.refresh()
            self._still(lease)

    def _still(self, lease: Lease) -> Lease:
        owner = self.state.owner
        if owner is None or owner.attempt < lease.attempt:
            self.refresh()  # claimed through another Journal, since this one last looked
            owner = self.state.owner
        where = f"attempt {lease.attempt} of {self.store.uri}"
        if owner is None or owner.attempt < lease.attempt:
            raise FencedError(f"{where} has no claim in the run's journal", kind="no-claim")
        if self.state.fences(lease.attempt, lease.claim):
            raise FencedError(
                f"{where} was replaced by attempt {owner.attempt} on {owner.origin.host}",
                kind="fenced",
                hint="This process must stop; the newer attempt goes on",
            )
        return lease

    def _append(self, event: Event, origin: Origin, lease: Callable[[], Lease]) -> Entry:
        nonce = secrets.token_hex(8)
        deadline = self._clock.monotonic() + _APPEND_SECONDS
        while self._clock.monotonic() < deadline:
            held = lease()
            entry = Entry(
                self.state.tail + 1, held.attempt, held.claim, nonce, round(self._clock.now(), 3), origin, event
            )
            if self.store.create(entry_key(entry.n), encode_entry(entry)):
                self._apply(entry, entry_key(entry.n))
                return entry
            found = self._read_next()
            if found is None:
                self._clock.sleep(random.uniform(*_PAUSE_SECONDS))
            elif found.nonce == nonce:  # our own put; only its reply was lost
                return found
        raise StoreError(
            f"no entry could be added to {self.store.uri} within {_APPEND_SECONDS:.0f} s: others keep writing",
            kind="contention",
        )

    def _read_to(self, last: int) -> None:
        keys = [entry_key(n) for n in range(self.state.tail + 1, last + 1)]
        if not keys:
            return
        with ThreadPoolExecutor(min(_READERS, len(keys)), thread_name_prefix="unbroken-journal") as pool:
            for key, data in zip(keys, pool.map(partial(_get_or_none, self.store), keys), strict=True):
                if data is None:
                    raise DamagedError(
                        f"{key} is missing from the journal of {self.store.uri}",
                        kind="journal-gap",
                        hint="Restore the object from the bucket's versions; nothing in a journal may be deleted",
                    )
                self._apply(decode_entry(data, key), key)

    def _read_next(self) -> Entry | None:
        key = entry_key(self.state.tail + 1)
        data = _get_or_none(self.store, key)
        if data is None:
            return None
        entry = decode_entry(data, key)
        self._apply(entry, key)
        return entry

    def _apply(self, entry: Entry, key: str) -> None:
        if entry_key(entry.n) != key:
            raise DamagedError(f"{key} in {self.store.uri} says that it is entry {entry.n}", kind="journal-entry")
        self.state.apply(entry)
        self.entries.append(entry)


def _get_or_none(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except NotFoundError as error:
        if error.kind != "object":  # the bucket or the folder itself is not there
            raise
        return None


def _decode_info(data: bytes, store: Store) -> RunInfo:
    try:
        written = msgspec.json.decode(data, type=_Format).format
        if written <= FORMAT:
            return msgspec.json.decode(data, type=RunInfo)
    except msgspec.MsgspecError as error:
        raise FormatError(
            f"{RUN_KEY} in {store.uri} does not describe a run ({error})",
            kind="run",
            hint="Is the URI right? Restore the object from the bucket's versions if it was overwritten",
        ) from error
    raise FormatError(
        f"{store.uri} was written in format {written}, and this version reads up to {FORMAT}",
        kind="newer-format",
        hint="Install a newer unbroken",
    )
