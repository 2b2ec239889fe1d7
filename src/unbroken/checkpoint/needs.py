"""Which objects checkpoints need, and what else pruning must know of them; read once, since nothing of it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from unbroken.checkpoint.chunks import READERS
from unbroken.checkpoint.committed import load_needed
from unbroken.checkpoint.metrics import read_metrics_object
from unbroken.errors import DamagedError, FormatError, UnbrokenError
from unbroken.journal import CheckpointRecord, RunState
from unbroken.journal.events import Note
from unbroken.store import Store

T = TypeVar("T")


class Needs:
    """Reads manifests and logged values of checkpoints and remembers what pruning asks of them. Not thread-safe.

    Args:
        store: of the run.
        go_on: called again and again while much is read; what it raises ends the reading.
    """

    def __init__(self, store: Store, go_on: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._go_on = go_on
        self._sizes: dict[str, dict[str, int]] = {}
        self._unreadable: dict[str, UnbrokenError] = {}
        self._values: dict[str, dict[str, float]] = {}

    def sizes(self, record: CheckpointRecord) -> dict[str, int]:
        """Bytes of each object that a checkpoint needs, by key: packs, rank records (0: not known), manifest.

        Raises:
            DamagedError: its manifest cannot be read, so nobody knows.
            FormatError: a newer version wrote it, so this one does not know.
        """
        key = record.event.manifest
        if key not in self._sizes:
            self._sizes[key] = load_needed(self._store, record)
        return self._sizes[key]

    def of(self, records: Iterable[CheckpointRecord]) -> frozenset[str]:
        """The keys that any of these checkpoints needs; raises as :meth:`sizes` does."""
        return frozenset[str]().union(*(self.sizes(record) for record in records))

    def damaged(self, state: RunState, records: Sequence[CheckpointRecord]) -> frozenset[str]:
        """Manifest keys of the checkpoints known to be damaged: an attempt said so, or the manifest does not read."""
        self._read(records)
        events = [entry.event for entry in state.notes]
        said = {
            key
            for event in events
            if isinstance(event, Note) and event.topic == "damaged"
            if isinstance(key := event.data.get("manifest"), str)
        }
        keys = {record.event.manifest for record in records}
        return frozenset(keys & (said | self._unreadable.keys()))

    def why_held(self, kept: Iterable[CheckpointRecord]) -> str:
        """Why nothing may be deleted while these are kept, or "": of one whose manifest does not read, nobody knows
        which packs it needs."""
        for record in kept:
            if (error := self._unreadable.get(record.event.manifest)) is not None:
                return (
                    f"the checkpoint of step {record.step} is kept, but what it needs cannot be read: {error.message}"
                )
        return ""

    def values(self, records: Sequence[CheckpointRecord], names: frozenset[str]) -> dict[str, dict[str, float]]:
        """The last value of each name that a checkpoint logged, by manifest key; without those that do not read."""
        if not names:
            return {}
        unread = [record for record in records if record.event.manifest not in self._values]
        for record, logged in self._read_each(unread, lambda record: read_metrics_object(self._store, record)):
            if not isinstance(logged, UnbrokenError):
                last = {name: points[-1][1] for name, points in logged.items() if points and name in names}
                self._values[record.event.manifest] = last
        return {key: self._values[key] for record in records if (key := record.event.manifest) in self._values}

    def forget_all_but(self, records: Iterable[CheckpointRecord]) -> None:
        """Drop what is remembered of other checkpoints."""
        keys = {record.event.manifest for record in records}
        for remembered in (self._sizes, self._unreadable, self._values):
            for key in remembered.keys() - keys:
                del remembered[key]

    def _read(self, records: Sequence[CheckpointRecord]) -> None:
        """Read the manifests not read before. One that did not read is tried again each time: a person may have
        brought it back."""
        self._unreadable.clear()
        unread = [record for record in records if record.event.manifest not in self._sizes]
        for record, sizes in self._read_each(unread, lambda record: load_needed(self._store, record)):
            if isinstance(sizes, UnbrokenError):
                self._unreadable[record.event.manifest] = sizes
            else:
                self._sizes[record.event.manifest] = sizes

    def _read_each(
        self, records: Sequence[CheckpointRecord], read: Callable[[CheckpointRecord], T]
    ) -> Iterator[tuple[CheckpointRecord, T | UnbrokenError]]:
        """What ``read`` gives for each, or why nobody can read it; many at a time."""

        def reading(record: CheckpointRecord) -> T | UnbrokenError:
            try:
                return read(record)
            except (DamagedError, FormatError) as error:
                return error

        if not records:
            return
        with ThreadPoolExecutor(min(READERS, len(records)), thread_name_prefix="unbroken-needs") as pool:
            for start in range(0, len(records), READERS):
                self._go_on()
                batch = records[start : start + READERS]
                yield from zip(batch, pool.map(reading, batch), strict=True)
