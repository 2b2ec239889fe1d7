"""Pruning a run that nobody trains: by an attempt of its own, which fences whoever might still write."""

from __future__ import annotations

import contextlib

from unbroken.checkpoint.pruning import Pruned, Pruner
from unbroken.checkpoint.retention import Policy
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import FencedError, UnbrokenError
from unbroken.journal import AttemptRecord, Journal, Origin, RunState
from unbroken.journal.events import AttemptEnded
from unbroken.store import Store

_PURPOSE = "prune"
_CAUSE = "maintenance"


def live_attempt(state: RunState) -> AttemptRecord | None:
    """The attempt that owns the run and trains, and has not said that it ended; it may have died without a word."""
    owner = state.owner
    return owner if owner is not None and owner.trains and owner.ended is None else None


def refuse_live(state: RunState) -> None:
    """Refuse to touch a run that is being trained.

    Raises:
        FencedError: of the kind ``live``.
    """
    if (owner := live_attempt(state)) is not None:
        raise FencedError(
            f"attempt {owner.attempt} on {owner.origin.host} owns the run and has not ended", kind="live",
            hint="Let the training prune (Run(keep=...)), or wait for its end. If it died without a word, --take-over "
            "prunes nevertheless; an attempt that still lives must stop then",
        )  # fmt: skip


def prune_run(
    store: Store, policy: Policy | None, origin: Origin, *, take_over: bool = False, clock: Clock = SYSTEM_CLOCK
) -> Pruned:
    """Retire what a policy gives up and delete what nothing needs, of a run that nobody trains.

    Args:
        store: of the run.
        policy: None retires nothing.
        origin: this process, for the journal.
        take_over: do it also where the newest attempt has not ended: this fences it.

    Raises:
        FencedError: the run is being trained, or a training began meanwhile; what was done until then stands.
        AccessError: the role may not delete, for example.
        StoreError: the storage failed; another call goes on.
    """
    journal = Journal.create(store, clock=clock)
    lease = journal.claim(origin, purpose=_PURPOSE, unless=None if take_over else refuse_live)
    detail = "pruning did not come to its end"
    try:
        done = Pruner(journal, lease, origin, policy).turn()
        detail = f"retired {done.retired} checkpoints, deleted {done.objects} objects ({done.bytes} bytes)"
        return done
    finally:
        with contextlib.suppress(UnbrokenError):  # without the word nothing is lost: such an attempt holds nobody up
            journal.append(AttemptEnded(_CAUSE, detail=detail), origin, lease)
