"""A restore into live objects: compared first, then read straight into their tensors, then loaded."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Self

from unbroken.checkpoint import Manifest, load_head, load_manifest, load_manifest_part
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import DamagedError, MismatchError, UnbrokenError
from unbroken.journal import CheckpointRecord, RunState
from unbroken.store import Store
from unbroken.training.live import live_tensors
from unbroken.training.objects import StateObject
from unbroken.training.placing import devices_of, place
from unbroken.training.rank_part import rank_part
from unbroken.training.ranks import Ranks
from unbroken.training.restore import Staged, apply_state, bytes_wanted, load_state, tensors_of
from unbroken.training.structure import compare_manifest
from unbroken.training.wanted import wanted_of

_log = logging.getLogger("unbroken")

OVERWRITTEN = (
    "The program's tensors were partly overwritten and must not be trained on: build them anew, or restore again first"
)
"""The hint of every error that a restore ends with after it began to read into live tensors."""

_SAY_EVERY = 5.0
_TELL_EVERY = 0.5


class InPlaceRestore:
    """One restore into live objects; the context in which it is read and applied.

    Memory that holds the state already is not asked for again: the tensors of ordinary modules, optimizers and plain
    tensors are read in place. Where a checkpoint turns out damaged, an older one is read over what came of it.

    Args:
        store: of the run.
        state: the run's, as its journal tells it.
        objects: to restore.
        exact: refuse a checkpoint that holds more objects than these.
        staged: the bytes of a checkpoint's tensors by name, or of its slices by name and offset, where they still lie
            in this machine's memory.
        ranks: which rank this is, of how many; the only one by default. Each restores for itself: no message is sent.
        tell: is told now and then how many bytes have arrived, of how many; from any thread.
    """

    def __init__(
        self,
        store: Store,
        state: RunState,
        objects: list[StateObject],
        *,
        exact: bool = True,
        staged: Callable[[CheckpointRecord], Staged | None] | None = None,
        ranks: Ranks | None = None,
        tell: Callable[[int, int], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._store = store
        self._imported = [record for record in state.checkpoints if not _trains(state, record)]
        self._objects = objects
        self._exact = exact
        self._staged = staged
        self._ranks = ranks or Ranks()
        self._tell = tell
        self._clock = clock
        self._overwritten: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._overwritten:
            return
        if isinstance(error, UnbrokenError):
            error.hint = f"{error.hint}. {OVERWRITTEN}" if error.hint else OVERWRITTEN
        else:
            error.add_note(f"unbroken: {OVERWRITTEN}")

    def read_manifest(self, record: CheckpointRecord) -> Manifest:
        """The manifest of a checkpoint; of several ranks as much of it as this one needs, for :meth:`load`.

        Raises:
            MismatchError: it cannot fit.
            DamagedError: it, or what is needed of it, is not what was committed.
        """
        if self._ranks.world_size == 1:
            return load_manifest(self._store, record)
        return load_manifest_part(
            self._store, record, rank=self._ranks.rank, world_size=self._ranks.world_size,
            wanted=lambda head: wanted_of(head, self._objects, self._ranks),
        )  # fmt: skip

    def load(self, record: CheckpointRecord, manifest: Manifest) -> dict[str, Any]:
        """Compare a checkpoint with the objects, then read it; what :func:`~unbroken.checkpoint.restore_newest` calls.

        Returns:
            the state, for :meth:`apply`.

        Raises:
            MismatchError: it does not fit, and has overwritten nothing; or one that was read before, and was damaged,
                has overwritten what this one lacks.
            DamagedError: bytes disagree with their digests.
        """
        part = rank_part(manifest, self._objects, self._ranks)
        compare_manifest(self._objects, manifest, part, exact=self._exact)
        self._demand_all(record, part.names)
        names = [item.name for item in self._objects if item.name in part.tree]
        everywhere = self._everywhere(record)
        live = live_tensors([item for item in self._objects if item.name in everywhere], manifest, part.tree)
        tree, placed = place({name: part.tree[name] for name in names}, self._objects, manifest)
        self._overwritten |= {
            name for name in names if not live.keys().isdisjoint(tensors_of(tree[name], placed).values())
        }
        state = load_state(
            self._store, manifest, names,
            tree=tree, placed=placed, live=live, devices=devices_of(tree, self._objects),
            staged=self._staged(record) if self._staged is not None else None,
            on_bytes=RestoreProgress(bytes_wanted(manifest, tree, placed), tell=self._tell, clock=self._clock),
        )  # fmt: skip
        return state | part.seeded

    def apply(self, manifest: Manifest, state: dict[str, Any]) -> None:
        """Load what was read into the objects.

        Raises:
            MismatchError: an object refuses it.
        """
        apply_state(self._objects, state, partial=manifest.partial)

    def _everywhere(self, record: CheckpointRecord) -> set[str]:
        """The objects that a damaged checkpoint may spoil, because whichever is read after it holds them, too.

        Only imported ones lack objects of the program, which then keep their initial state.
        """
        names = {item.name for item in self._objects}
        for imported in self._imported:
            if imported.n < record.n:
                with contextlib.suppress(DamagedError):  # nobody will go back to that one
                    names &= load_head(self._store, imported).state.keys()
        return names

    def _demand_all(self, record: CheckpointRecord, held: Collection[str]) -> None:
        lost = sorted(self._overwritten - set(held))
        if lost:
            raise MismatchError(
                f"the checkpoint of step {record.step} holds no {', '.join(lost)}, whose initial state is gone",
                kind="objects",
            )


def _trains(state: RunState, record: CheckpointRecord) -> bool:
    attempt = state.attempts.get(record.attempt)
    return attempt is not None and attempt.trains


class RestoreProgress:
    """Counts bytes that arrive, from any thread, and says every five seconds how far a restore is.

    Args:
        total: bytes to come.
        tell: is told more often, for a line that is written anew.
    """

    def __init__(
        self, total: int, *, tell: Callable[[int, int], None] | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._total = total
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._done = 0
        self._began = self._said = self._told = clock.monotonic()

    def __call__(self, count: int) -> None:
        now = self._clock.monotonic()
        with self._lock:
            self._done += count
            done, telling, saying = self._done, now - self._told >= _TELL_EVERY, now - self._said >= _SAY_EVERY
            self._told = now if telling else self._told
            self._said = now if saying else self._said
        if telling and self._tell is not None:
            self._tell(done, self._total)
        if saying:
            self._say(done, done / (now - self._began))

    def _say(self, done: int, rate: float) -> None:
        _log.info("unbroken: restoring %.1f of %.1f GB (%.1f GB/s)", done / 1e9, self._total / 1e9, rate / 1e9)
