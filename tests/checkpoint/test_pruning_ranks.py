"""Pruning runs of several ranks."""

from __future__ import annotations

from tests.checkpoint.conftest import tensor_of
from tests.checkpoint.ranks import Gang, reassembled, rows, truth
from tests.checkpoint.test_pruning import kept, needed, steps, stored

from unbroken.checkpoint import load_manifest, verify_checkpoint
from unbroken.checkpoint.pruning import Pruner, plan_prune
from unbroken.checkpoint.retention import KeepLast
from unbroken.journal.events import CheckpointRetired
from unbroken.store import Store
from unbroken.testing import flip_bit


def test_pruning_keeps_what_a_kept_checkpoint_of_several_ranks_needs_and_deletes_the_rest(store: Store) -> None:
    gang = Gang(store, 3)
    frozen = tensor_of("frozen", "uint8", (30, 4))
    for step in (1, 2, 3):
        moving = tensor_of("w", "float32", (6,), step)
        parts = zip(rows(frozen, 10, 15, 5), rows(moving, 1, 2, 3), strict=True)
        gang.save(step, [list(part) for part in parts])
    gang.write(4, [[], [], []])  # never committed
    oldest = load_manifest(store, kept(store)[0])
    Pruner(gang.journal, gang.lease, gang.origin, KeepLast(1)).turn()
    assert steps(store) == [2, 3]
    assert not {ref.key for ref in oldest.ranks} & stored(store)
    assert {pack.key for pack in oldest.packs} <= needed(store)  # the frozen boxes lie there
    assert {key for key in stored(store) - needed(store) if "/4" not in key} == set()
    left = stored(store) - needed(store)
    successor = Gang(store, 3)
    found = {each.key: each.orphan for each in plan_prune(successor.journal, None, below=2).garbage}
    assert found == dict.fromkeys(left, True)
    Pruner(successor.journal, successor.lease, successor.origin, KeepLast(1)).turn()
    assert stored(store) == needed(store)
    record = kept(store)[-1]
    assert verify_checkpoint(store, record).problems == []
    assert reassembled(store, load_manifest(store, record))["frozen"] == truth([frozen])["frozen"]


def test_what_a_retired_checkpoint_of_several_ranks_left_is_told_from_what_was_never_committed(store: Store) -> None:
    gang = Gang(store, 2)
    for step in (1, 2):
        gang.save(step, [[tensor_of("w", "uint8", (4,), step)], []])
    first = gang.journal.state.checkpoints[0]
    of_first = load_manifest(store, first)
    lost = gang.write(3, [[], []])
    gang.journal.append(CheckpointRetired(first.event.manifest, 1), gang.origin, gang.lease)
    orphan = {each.key: each.orphan for each in plan_prune(Gang(store, 2).journal, None, below=2).garbage}
    told = {first.event.manifest, *(ref.key for ref in of_first.ranks), *(pack.key for pack in of_first.packs)}
    assert {key for key, alone in orphan.items() if not alone} == told
    assert {ref.key for ref in (each.ref for each in lost.values())} <= {key for key, alone in orphan.items() if alone}


def test_while_a_record_of_a_kept_checkpoint_does_not_read_nothing_is_deleted(store: Store) -> None:
    gang = Gang(store, 2)
    for step in (1, 2):
        gang.save(step, [[tensor_of("w", "uint8", (4,), step)], []])
    flip_bit(store, load_manifest(store, kept(store)[1]).ranks[1].key, 20)
    before = stored(store)
    done = Pruner(gang.journal, gang.lease, gang.origin, KeepLast(2)).turn()
    assert "what it needs cannot be read" in done.held
    assert stored(store) == before
