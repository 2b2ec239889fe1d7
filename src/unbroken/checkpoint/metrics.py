"""Logged values: one object for each checkpoint, holding what was logged since its parent.

The object is JSON: ``{"format": 1, "values": {"loss": [[step, value], ...]}}``; values are numbers, or tags of the
state tree where JSON has no number. The chain of parents gives the curve of a whole run, each step once.
"""

from __future__ import annotations

import msgspec

from unbroken.checkpoint.manifest import sha256
from unbroken.checkpoint.tree import decode_tree, encode_tree
from unbroken.errors import DamagedError, FormatError, NotFoundError
from unbroken.journal import CheckpointRecord, RunState
from unbroken.store import Store

Metrics = dict[str, list[tuple[int, float]]]
"""Logged values by name: (step, value), steps rising."""


def encode_metrics(metrics: Metrics) -> bytes:
    """The bytes of a metrics object."""
    values = {
        name: [[step, encode_tree(value, f"the logged {name}")] for step, value in points]
        for name, points in metrics.items()
    }
    return msgspec.json.encode({"format": 1, "values": values})


def read_metrics(store: Store, state: RunState, record: CheckpointRecord) -> Metrics:
    """All values logged on the way to a checkpoint.

    Raises:
        DamagedError: a metrics object is missing or is not what was committed.
    """
    by_manifest = {commit.event.manifest: commit for commit in state.commits}
    chain = []
    current: CheckpointRecord | None = record
    while current is not None:
        chain.append(current)
        current = by_manifest.get(current.event.parent)
    metrics: Metrics = {}
    for commit in reversed(chain):
        if commit.event.metrics:
            for name, points in _read_one(store, commit).items():
                metrics.setdefault(name, []).extend(points)
    return metrics


def _read_one(store: Store, record: CheckpointRecord) -> Metrics:
    key = record.event.metrics
    try:
        data = store.get(key)
    except NotFoundError as error:
        raise DamagedError(f"{key} is missing from {store.uri}", kind="missing") from error
    if sha256(data) != record.event.metrics_sha256:
        raise DamagedError(f"{key} in {store.uri} is not what was committed (SHA-256 differs)", kind="metrics")
    try:
        values = msgspec.json.decode(data)["values"]
        return {name: [(int(step), decode_tree(value)) for step, value in points] for name, points in values.items()}
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{key} is no metrics object that this version can read ({error})", kind="metrics") from error
