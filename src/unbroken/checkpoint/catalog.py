"""Choosing the checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from unbroken.checkpoint.committed import load_manifest
from unbroken.checkpoint.manifest import Manifest
from unbroken.errors import DamagedError
from unbroken.journal import CheckpointRecord, RunState
from unbroken.store import Store

T = TypeVar("T")


def newest_first(state: RunState) -> Iterator[CheckpointRecord]:
    """Committed checkpoints in the order in which a restore tries them: latest commit first.

    The order is the journal's, never that of names, steps or modification times.
    """
    return reversed(state.checkpoints)


def restore_newest(
    store: Store,
    state: RunState,
    load: Callable[[CheckpointRecord, Manifest], T],
    *,
    on_damaged: Callable[[CheckpointRecord, DamagedError], None],
    read_manifest: Callable[[CheckpointRecord], Manifest] | None = None,
) -> tuple[CheckpointRecord, Manifest, T] | None:
    """Load the newest checkpoint that is sound.

    Args:
        load: reads what it needs of the checkpoint, verified; raises DamagedError where that fails.
        on_damaged: told of each checkpoint that was passed over.
        read_manifest: reads as much of a manifest as ``load`` needs, or raises DamagedError; all of it by default.

    Returns:
        what was loaded, or None for a run without any commit.

    Raises:
        DamagedError: there are checkpoints, and every one is damaged. Starting again from nothing would throw away
            paid work, so that is a person's decision.
        FormatError: a newer version wrote it. It is not passed over: going back to an older checkpoint would throw
            away work that is sound.
        StoreError: the storage failed, which says nothing of the checkpoint.
    """
    passed_over = 0
    for record in newest_first(state):
        try:
            manifest = load_manifest(store, record) if read_manifest is None else read_manifest(record)
            return record, manifest, load(record, manifest)
        except DamagedError as error:
            passed_over += 1
            on_damaged(record, error)
    if passed_over:
        raise DamagedError(
            f"all {passed_over} checkpoints of {store.uri} are damaged", kind="all-damaged",
            hint="Bring objects back from the bucket's versions, or begin a new run at another URI",
        )  # fmt: skip
    return None
