"""The checkpoints of one attempt, written in its trainer's name: which one continues which, and none twice."""

from __future__ import annotations

import threading
from typing import Protocol

from unbroken.agent.claims import Claim
from unbroken.checkpoint import CheckpointWriter, HostState, Manifest, holds_state, load_manifest
from unbroken.clock import Clock
from unbroken.errors import DamagedError
from unbroken.journal import CheckpointRecord
from unbroken.journal.events import CheckpointCommitted
from unbroken.store.store import OnPiece

_WORD_SECONDS = 5.0
"""For how long a trainer that announced a state is waited for to say where it came from."""


class _Continuing(Protocol):
    def continue_from(self, record: CheckpointRecord, manifest: Manifest) -> None: ...


class ContinuedWriter:
    """What is the same for one rank and for several: where the next checkpoint goes on from, and which exist already.

    The upload thread alone writes; the rest is safe from any thread.

    Args:
        writer: is told which checkpoint it continues.
    """

    def __init__(self, claim: Claim, writer: _Continuing, clock: Clock) -> None:
        self.claim = claim
        self._clock = clock
        self._continuing = writer
        self._parent = ""
        """Key of the manifest that the writer continues."""
        self._own = ""
        """The same of the checkpoint that was committed last from what this writer wrote."""
        self._origin: str | None = None
        """Key of the manifest that the trainer went on from, once it said so."""
        self._wrote = False
        self._turned = False
        """Whether the trainer went to another checkpoint since we wrote one."""
        self._said = threading.Event()
        self._share = 1.0

    def restored(self, manifest: str) -> None:
        """The trainer goes on from this checkpoint; "" for none."""
        self._origin = manifest
        self._turned = self._wrote
        self._said.set()

    def parted(self) -> None:
        """The trainer says nothing more."""
        self._said.set()

    def expected(self, size: int) -> int:
        """Bytes that a state of ``size`` bytes is likely to need in the store, by the share that changed last time."""
        return int(size * self._share)

    def _look_back(self, state: HostState) -> CheckpointCommitted | None:
        """What the journal says of this state already; where it says nothing, the writer goes on from the right
        checkpoint afterwards.

        Raises:
            FencedError: a later attempt owns the run.
        """
        # The trainer retires checkpoints, and may have written some itself: what it did is only in the store.
        self.claim.journal.require(self.claim.lease)
        mine = [r for r in self.claim.journal.state.commits if r.attempt == self.claim.lease.attempt]
        if mine and self._was_committed(mine[-1], state):
            return mine[-1].event
        self._continue(None if self._turned or not mine else mine[-1])
        return None

    def _committed(self, manifest: str) -> None:
        """What was written last is a checkpoint now."""
        self._own, self._wrote, self._turned = manifest, True, False

    def _measured(self, written: int, size: int) -> None:
        if size:
            self._share = min(1.0, written / size)

    def _load(self, record: CheckpointRecord) -> Manifest:
        """The manifest of a checkpoint, or as much of it as is needed to go on from there."""
        return load_manifest(self.claim.journal.store, record)

    def _was_committed(self, newest: CheckpointRecord, state: HostState) -> bool:
        """Whether an agent before us committed this very state, and only its reply was lost."""
        if newest.step != state.step or newest.event.manifest in (self._parent, self._own):
            return False
        try:
            return holds_state(self._load(newest), state)
        except DamagedError:
            return False

    def _continue(self, own: CheckpointRecord | None) -> None:
        record = own or self._restored_record()
        if record is None or record.event.manifest == self._parent:
            return
        try:
            manifest = self._load(record)
        except DamagedError:
            return  # whole again without it, and it harms nobody but itself
        self._continuing.continue_from(record, manifest)
        self._parent = record.event.manifest

    def _restored_record(self) -> CheckpointRecord | None:
        """Where this attempt began; by the journal, where an earlier agent was told and died."""
        self._clock.wait(self._said, _WORD_SECONDS)
        state = self.claim.journal.state
        newest_first = list(reversed(state.commits))
        if self._origin is not None:
            return next((r for r in newest_first if r.event.manifest == self._origin), None)
        step = state.attempts[self.claim.lease.attempt].restored_step
        return next((r for r in newest_first if r.step == step), None)


class AttemptWriter(ContinuedWriter):
    """Writes for an attempt of one rank."""

    place = (0, 1)
    """Rank and world size."""
    peers = 1
    """Ranks on this node whose parts belong together."""

    def __init__(self, claim: Claim, clock: Clock) -> None:
        self._writer = CheckpointWriter(claim.journal, claim.lease, claim.origin, clock=clock)
        super().__init__(claim, self._writer, clock)

    def write(self, state: HostState, on_piece: OnPiece) -> CheckpointCommitted:
        """As :meth:`unbroken.checkpoint.CheckpointWriter.write`; a step that this attempt has committed already is not
        written again.

        Raises:
            FencedError: a later attempt owns the run.
            StoreError: the storage failed, and the state may be written again.
        """
        before = self._look_back(state)
        if before is not None:
            return before
        event = self._writer.write(state, on_piece=on_piece)
        self._parent = event.manifest
        self._committed(event.manifest)
        self._measured(event.written, event.size)
        return event
