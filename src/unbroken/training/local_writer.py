"""Saves written by the training process itself: where no agent stands by, or none lives."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from unbroken.checkpoint import CheckpointWriter, HostState, Manifest, holds_state, load_manifest
from unbroken.clock import Clock
from unbroken.errors import FencedError, StoreError, UnbrokenError
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.journal.events import CheckpointCommitted
from unbroken.link.arena import Slot
from unbroken.training.saver import PendingSave

_TRIES = 3
_FIRST_PAUSE = 1.0


class LocalWriter:
    """A :class:`~unbroken.training.saver.SaveWriter` over a :class:`~unbroken.checkpoint.CheckpointWriter`.

    Args:
        journal: of the run, opened for writing.
        lease: the attempt's.
        origin: this process, for the journal.
    """

    def __init__(self, journal: Journal, lease: Lease, origin: Origin, *, clock: Clock) -> None:
        self._journal = journal
        self._lease = lease
        self._writer = CheckpointWriter(journal, lease, origin, clock=clock)
        self._clock = clock
        self._hurry = threading.Event()

    def offer(self, slots: Sequence[Slot]) -> None:
        """Nobody else need know."""

    def announce(self, pending: PendingSave) -> None:
        """Nothing can be done before :meth:`write`."""

    def write(self, pending: PendingSave) -> CheckpointCommitted:
        """Write, at most three times; a later attempt's claim ends that."""
        if pending.state is None:
            raise StoreError(f"step {pending.step} was not staged", kind="fault")

        def piece(_: int) -> None:
            if not pending.wanted:
                raise StoreError(f"the save of step {pending.step} was given up in the middle", kind="abandoned")

        pause = _FIRST_PAUSE
        for _ in range(_TRIES - 1):
            try:
                return self._writer.write(pending.state, on_piece=piece)
            except FencedError:
                raise
            except UnbrokenError:
                if not pending.wanted or self._clock.wait(self._hurry, pause):
                    raise
                pause *= 2
        return self._writer.write(pending.state, on_piece=piece)

    def continue_from(self, record: CheckpointRecord, manifest: Manifest) -> None:
        """Name the parent of the next checkpoint."""
        self._writer.continue_from(record, manifest)

    def take_over(self, state: HostState, parent: str) -> CheckpointCommitted | None:
        """Go on after another writer of this attempt, whose last words may be lost.

        Args:
            state: what is to be written next.
            parent: manifest key of the checkpoint that it continues, as far as is known; "" for none.

        Returns:
            the commit of that very state, where the other writer came so far.

        Raises:
            UnbrokenError: the journal or the parent's manifest could not be read.
        """
        self._journal.refresh()
        commits = self._journal.state.commits
        mine = [record for record in commits if record.attempt == self._lease.attempt]
        known = next((record for record in commits if record.event.manifest == parent), None)
        newest = mine[-1] if mine and (known is None or mine[-1].n > known.n) else known
        if newest is None:
            return None
        manifest = load_manifest(self._journal.store, newest)
        self._writer.continue_from(newest, manifest)
        return newest.event if newest in mine and holds_state(manifest, state) else None

    def hurry(self) -> None:
        """Cut the pauses between tries short."""
        self._hurry.set()
