"""The saves of one attempt: staged in the arena, and seen to become durable behind the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unbroken.checkpoint import HostState, HostTensor, Metrics
from unbroken.clock import Clock
from unbroken.journal.events import CheckpointCommitted
from unbroken.link.arena import Slot, SlotOwner
from unbroken.training.capture import Captured, capture
from unbroken.training.objects import StateObject
from unbroken.training.ranks import Ranks
from unbroken.training.saver import PendingSave, Saver, SaveWriter
from unbroken.training.staging import StagingArea

_LOOK_SECONDS = 1.0
_STAGING_SECONDS = 30.0


class Saves:
    """Owns staging area and saver. The loop's thread calls it.

    Args:
        owner: whose state the slots hold.
        writer: makes states durable.
        overlap: whether what only the optimizer changes may be copied while the next step runs.
        on_committed, on_failed, when_idle: as of :class:`~unbroken.training.saver.Saver`.
        say: told once what people should know of the staging.
        ranks: which of how many ranks this process is.
    """

    def __init__(
        self,
        owner: SlotOwner,
        writer: SaveWriter,
        *,
        overlap: bool,
        on_committed: Callable[[CheckpointCommitted], None],
        on_failed: Callable[[int, Exception], None],
        when_idle: Callable[[], None],
        say: Callable[[str], None],
        ranks: Ranks | None = None,
        clock: Clock,
    ) -> None:
        self._ranks = ranks or Ranks()
        self._owner = owner
        self._writer = writer
        self._clock = clock
        self._staging = StagingArea(overlap=overlap, say=say, ranks=self._ranks, clock=clock)
        self._saver = Saver(writer, on_committed=on_committed, on_failed=on_failed, when_idle=when_idle, clock=clock)
        self.newest: PendingSave | None = None
        """The save that was begun last."""

    def prepare(self, objects: list[StateObject], adopted: Sequence[Slot] = ()) -> None:
        """Make the arena ready for the state of ``objects``, with memory of an earlier trainer where there is some."""
        self._staging.prepare(objects, adopted)
        self._writer.offer(self._staging.slots)

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._saver.busy

    @property
    def pressed(self) -> bool:
        """Whether a save is under way, or the attempt ends."""
        return self._saver.pressed

    @property
    def fatal(self) -> Exception | None:
        """Why no further save can succeed."""
        return self._saver.fatal

    def begin(
        self,
        objects: list[StateObject],
        step: int,
        metrics: Metrics,
        *,
        since: float | None,
        standing: bool,
        patience: Callable[[], float],
    ) -> PendingSave | None:
        """Stage the state of the objects; it is on its way when this returns.

        Args:
            since: when the step was complete, by the monotonic clock; None: now.
            standing: whether the loop stands still until the save is durable, so that no copy need be deferred.
            patience: for how many seconds more the loop may stand still where there is no memory for a copy.

        Returns:
            the save, or None while all slots are under way.

        Raises:
            MemoryError: the host has no room for the state.
            ConfigError: a value that a checkpoint cannot hold; names its path.
        """
        began = self._clock.monotonic() if since is None else since

        def described(captured: Captured, tensors: list[HostTensor], stall: float) -> HostState:
            return HostState(
                step, captured.tree, tensors, metrics, began_at=began, stall=stall,
                rank=captured.ranks.rank, world_size=captured.ranks.world_size, local=captured.local,
                shared=captured.shared,
            )  # fmt: skip

        if self._staging.streaming:
            return self._stream(objects, step, described, patience)
        slot = self._staging.take()
        if slot is None:
            return None
        before = self.newest
        self.newest = pending = self._saver.begin(step, lambda: self._staging.give_back(slot), slot)

        def staged(result: HostState | Exception) -> None:
            if isinstance(result, HostState):
                if before is not None:  # its copying thread may be moments late; the newest commit is the newest step
                    self._wait_until_staged(before, _STAGING_SECONDS)
                self._saver.submit(pending, result)
            else:
                self._saver.abandon(pending, result)

        try:
            captured = capture(objects, self._ranks)
            self._staging.stage(
                slot, captured, lambda tensors, stall: described(captured, tensors, stall), self._owner, staged,
                eager=standing,
            )  # fmt: skip
        except BaseException:
            self._saver.cancel(pending)
            raise
        return pending

    def pending(self, step: int) -> PendingSave | None:
        """The save of this step, if it is under way."""
        found = self.newest
        return found if found is not None and found.step == step and not found.done.is_set() else None

    def wait(self, pending: PendingSave, seconds: float) -> bool:
        """Wait for a save to be committed; False if it was given up, or not done within ``seconds``."""
        return self._saver.wait(pending, seconds) and pending.event is not None

    def close(self, seconds: float) -> bool:
        """Let saves under way finish for at most ``seconds`` and end the threads; False where one was left behind."""
        newest = self.newest
        try:
            if newest is not None and newest.state is None and not newest.done.is_set():
                # Still being copied, which takes moments: what is staged is announced, and survives this process.
                self._wait_until_staged(newest, min(seconds, _STAGING_SECONDS))
            return self._saver.close(seconds)
        finally:
            self._staging.close(_STAGING_SECONDS)

    def _wait_until_staged(self, pending: PendingSave, seconds: float) -> None:
        """Wait for a copy under way, for as long as there is somebody who copies."""
        deadline = self._clock.monotonic() + seconds
        while not pending.staged.is_set() and self._staging.copies:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            self._clock.wait(pending.staged, min(_LOOK_SECONDS, left))

    def _stream(
        self,
        objects: list[StateObject],
        step: int,
        described: Callable[[Captured, list[HostTensor], float], HostState],
        patience: Callable[[], float],
    ) -> PendingSave:
        """Write the state from where it lies; the loop stands still, for nothing of it may change meanwhile."""
        self.newest = pending = self._saver.begin(step, lambda: None)
        try:
            captured = capture(objects, self._ranks)
            state = described(captured, self._staging.stream(captured), 0.0)
        except BaseException:
            self._saver.cancel(pending)
            raise
        self._saver.submit(pending, state)
        while not self._clock.wait(pending.done, max(0.0, min(_LOOK_SECONDS, patience()))) and patience() > 0:
            pass
        pending.wanted = False  # what is read from here on may have changed
        return pending
