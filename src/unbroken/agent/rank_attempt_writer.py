"""The part of one rank in the checkpoints of an attempt of several."""

from __future__ import annotations

from unbroken.agent.attempt_writer import ContinuedWriter
from unbroken.agent.local_ranks import LocalRanks
from unbroken.checkpoint import HostState, Manifest, RankDurable, RankWriter, load_rank_part
from unbroken.clock import Clock
from unbroken.journal import CheckpointRecord
from unbroken.journal.events import CheckpointCommitted
from unbroken.store.store import OnPiece


class RankAttemptWriter(ContinuedWriter):
    """Writes what one rank staged. The upload thread alone calls :meth:`write`; the rest is safe from any thread."""

    def __init__(self, ranks: LocalRanks, rank: int, clock: Clock) -> None:
        self.ranks = ranks
        self.rank = rank
        self.tail = 0
        """Number of the journal's last entry as the last write began."""
        claim = ranks.claim
        self._writer = RankWriter(
            claim.journal, claim.lease, claim.origin, rank=rank, world_size=ranks.world_size, clock=clock
        )
        super().__init__(claim, self._writer, clock)

    @property
    def place(self) -> tuple[int, int]:
        """Rank and world size."""
        return self.rank, self.ranks.world_size

    @property
    def peers(self) -> int:
        """Ranks on this node whose parts belong together."""
        return len(self.ranks.here)

    def parted(self) -> None:
        super().parted()
        self.ranks.part(self.rank)

    def committed(self, manifest: str) -> None:
        """What was written last is part of this checkpoint."""
        self._committed(manifest)

    def write(self, state: HostState, on_piece: OnPiece) -> CheckpointCommitted | RankDurable:
        """Make the rank's part durable, or find that the checkpoint exists already.

        Raises:
            FencedError: a later attempt owns the run.
            StoreError: the storage failed, and the state may be written again.
        """
        before = self._look_back(state)
        if before is not None:
            return before
        self.tail = self.claim.journal.state.tail
        durable = self._writer.write(state, on_piece=on_piece)
        self._measured(durable.record.written, sum(len(tensor.data) for tensor in state.tensors))
        return durable

    def _load(self, record: CheckpointRecord) -> Manifest:
        return load_rank_part(self.claim.journal.store, record, self.rank)
