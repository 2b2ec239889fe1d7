"""Retiring checkpoints and deleting what only they needed. The protocol is specified in docs/spec/journal-v1.md.

A ``checkpoint-retired`` entry goes first, as the owner. What follows may come late, twice or never: a retired
checkpoint does not come back, and a new one can refer only to packs of one that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from unbroken.checkpoint.garbage import Garbage, find_garbage
from unbroken.checkpoint.needs import Needs
from unbroken.checkpoint.retention import Policy, choose, why_kept
from unbroken.errors import DamagedError, FormatError
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin
from unbroken.journal.events import CheckpointRetired

_HELD = "held"
_BATCH = 16
"""Objects deleted in one call: so few that a save which comes to wait does not wait long."""
_PROBE = "packs/0/may-this-role-delete"
"""Key of an object that cannot be there: there is no attempt 0."""


@dataclass(frozen=True)
class PrunePlan:
    """What pruning would do. Checkpoints are in the order of their commits."""

    kept: list[CheckpointRecord]
    retired: list[CheckpointRecord]
    reasons: dict[str, list[str]]
    """Why each of ``kept`` is kept, by manifest key; ``held``: only because nothing may be retired."""
    garbage: list[Garbage]
    """Objects to delete, in the order of their keys."""
    held: str = ""
    """Why nothing may be retired or deleted; "" where nothing stands against it."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.retired and not self.garbage


def plan_prune(journal: Journal, policy: Policy | None, *, below: int, needs: Needs | None = None) -> PrunePlan:
    """Say what pruning would retire and delete; writes nothing.

    Args:
        journal: of the run, as read.
        policy: None keeps every checkpoint, so that only what nothing needs is deleted.
        below: objects of attempts from this number on are left alone: their saves may be under way.

    Raises:
        StoreError: the storage failed.
    """
    needs = needs or Needs(journal.store)
    records = journal.state.checkpoints
    damaged = needs.damaged(journal.state, records)
    values = needs.values(records, policy.metrics if policy else frozenset())
    choice = choose(records, values, policy, damaged=damaged)
    reasons = why_kept(records, values, policy, damaged=damaged)
    held = needs.why_held(choice.kept)
    if held:
        for record in choice.retired:
            reasons[record.event.manifest] = [_HELD]
        return PrunePlan(list(records), [], reasons, [], held)
    garbage = find_garbage(journal, needs.of(choice.kept), below=below)
    return PrunePlan(choice.kept, choice.retired, reasons, garbage)


@dataclass
class Pruned:
    """What a turn of a :class:`Pruner` did."""

    retired: int = 0
    objects: int = 0
    bytes: int = 0
    """Of the deleted objects, as far as their sizes were known."""
    held: str = ""
    """Why nothing may be retired or deleted; "" where nothing stood against it."""
    complete: bool = False
    """Whether it came to the end: it neither gave way before nor was held."""


class _GaveWayError(Exception):
    """Something that matters more is waiting."""


class Pruner:
    """Prunes a run for one attempt that owns it, a turn at a time. Not thread-safe.

    Args:
        journal: opened for writing.
        lease: of the attempt. While a turn is under way, no save of the attempt may be.
        origin: this process, for the journal.
        policy: None retires nothing.
    """

    def __init__(self, journal: Journal, lease: Lease, origin: Origin, policy: Policy | None) -> None:
        self._journal = journal
        self._lease = lease
        self._origin = origin
        self._policy = policy
        self._needs = Needs(journal.store, self._go_on)
        self._give_way: Callable[[], bool] = lambda: False
        self._to_clear: dict[str, CheckpointRecord] = {}
        """Retired by this attempt and not cleared away yet, by manifest key; with some whose entry's fate is not
        known."""
        self._gone: set[str] = set()
        """Deleted in this turn."""
        self._may_delete = False
        self._swept = False

    def turn(self, give_way: Callable[[], bool] = lambda: False) -> Pruned:
        """Retire what the policy gives up, and delete what nothing needs; of earlier attempts' leavings, once.

        Args:
            give_way: asked again and again; when it says True the turn ends, and the next one goes on.

        Raises:
            FencedError: a later attempt owns the run.
            AccessError: the role may not delete, for example. Where that is found out first, nothing was retired.
            StoreError: the storage failed; the next turn goes on.
        """
        done = Pruned()
        self._give_way = give_way
        self._gone.clear()
        try:
            self._turn(done)
        except _GaveWayError:
            return done
        done.complete = not done.held
        return done

    def _turn(self, done: Pruned) -> None:
        self._go_on()
        self._journal.require(self._lease)
        state = self._journal.state
        damaged = self._needs.damaged(state, state.checkpoints)
        values = self._needs.values(state.checkpoints, self._policy.metrics if self._policy else frozenset())
        kept, retired = choose(state.checkpoints, values, self._policy, damaged=damaged)
        done.held = self._needs.why_held(kept)
        if done.held:
            return
        self._demand_deletion()
        for record in retired:
            self._go_on()
            self._to_clear[record.event.manifest] = record
            self._journal.append(CheckpointRetired(record.event.manifest, record.step), self._origin, self._lease)
            done.retired += 1
        needed = self._needs.of(state.checkpoints)
        self._sweep(done, needed)
        self._clear(done, needed)
        self._needs.forget_all_but(state.checkpoints)

    def _demand_deletion(self) -> None:
        """Find out whether this role may delete before anything is retired: hiding checkpoints frees nothing."""
        if not self._may_delete:
            self._journal.store.delete([_PROBE])
            self._may_delete = True

    def _sweep(self, done: Pruned, needed: frozenset[str]) -> None:
        """Delete what earlier attempts left: of retired checkpoints, of saves that failed, of prunes that died."""
        if not self._swept:
            garbage = find_garbage(self._journal, needed, below=self._lease.attempt)
            self._delete([(each.key, each.size) for each in garbage], done)
            self._swept = True

    def _clear(self, done: Pruned, needed: frozenset[str]) -> None:
        """Delete what only the checkpoints need that this attempt retired; last the manifest, which names the rest."""
        for manifest, record in list(self._to_clear.items()):
            if manifest in needed:  # its entry never came to be
                continue
            try:
                sizes = self._needs.sizes(record)
            except (DamagedError, FormatError):
                sizes = {manifest: 0}  # nobody can say what it needed: the next attempt's sweep finds that
            useless = [(key, size) for key, size in sizes.items() if key not in needed and key != manifest]
            self._delete([*useless, (manifest, sizes[manifest])], done)
            del self._to_clear[manifest]

    def _delete(self, objects: Iterable[tuple[str, int]], done: Pruned) -> None:
        left = [(key, size) for key, size in objects if key not in self._gone]
        while left:
            self._go_on()
            batch, left = left[:_BATCH], left[_BATCH:]
            self._journal.store.delete([key for key, _ in batch])
            self._gone.update(key for key, _ in batch)
            done.objects += len(batch)
            done.bytes += sum(size for _, size in batch)

    def _go_on(self) -> None:
        if self._give_way():
            raise _GaveWayError
