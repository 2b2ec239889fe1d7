"""What a training loop needs of the other ranks. Of one rank, nothing is asked of anybody."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from unbroken.checkpoint import Manifest, restore_newest
from unbroken.clock import Clock
from unbroken.errors import DamagedError
from unbroken.journal import CheckpointRecord, Journal, RunState
from unbroken.store import Store
from unbroken.training.agent_link import StopRequest
from unbroken.training.agreement_gate import Gate
from unbroken.training.link import Link
from unbroken.training.ranks import Ranks

T = TypeVar("T")


class Team:
    """The team of one rank, and the face of every other: :class:`~unbroken.training.many_ranks.ManyRanks`.

    The loop's thread calls it, but for what says otherwise.

    Args:
        ranks: which of how many ranks this process is.
    """

    def __init__(self, ranks: Ranks, *, clock: Clock) -> None:
        self.ranks = ranks
        self.gate = Gate(0, clock=clock, wait_seconds=0.0)
        """What the loop passes before each step."""

    @property
    def several(self) -> bool:
        """Whether there are other ranks."""
        return self.ranks.world_size > 1

    @property
    def chief(self) -> bool:
        """Whether this is rank 0, which alone claims, decides when to save, and writes to the journal."""
        return self.ranks.rank == 0

    def open(self, link: Link) -> Journal:
        """Become part of the run's next attempt.

        Raises:
            UnbrokenError: it cannot be opened.
        """
        link.open()
        return link.open_journal()

    def watch(self, step: int, on_lost: Callable[[str], None]) -> None:
        """Agree with the others from now on, and see whether they live.

        Args:
            step: completed steps.
            on_lost: told, once and in another thread, that a rank is gone without a word.
        """

    def restorable(self, state: RunState) -> RunState:
        """The run as far as a restore must know it: rank 0 has replayed the journal, and tells the others."""
        return state

    def restore_newest(
        self,
        store: Store,
        state: RunState,
        load: Callable[[CheckpointRecord, Manifest], T],
        *,
        read_manifest: Callable[[CheckpointRecord], Manifest],
        on_damaged: Callable[[CheckpointRecord, DamagedError], None],
    ) -> tuple[CheckpointRecord, Manifest, T] | None:
        """As :func:`unbroken.checkpoint.restore_newest`; all ranks take the same checkpoint."""
        return restore_newest(store, state, load, on_damaged=on_damaged, read_manifest=read_manifest)

    def propose_stop(self, stop: StopRequest) -> None:
        """Have all ranks stop at the same step. Safe from any thread."""

    def propose_save(self) -> None:
        """Have all ranks save at the same step, soon. Rank 0 alone."""

    def await_finish(self) -> None:
        """Return when rank 0 has journalled that the run is finished, or after a bounded time."""

    def close(self, reason: str = "") -> None:
        """Take leave of the others; never raises.

        Args:
            reason: why this rank ends though the training does not; "" where it leaves in order.
        """
