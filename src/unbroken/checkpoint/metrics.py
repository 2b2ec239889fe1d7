"""Logged values: one object for each checkpoint, holding what was logged since its parent.

The object is JSON: ``{"format": 1, "values": {"loss": [[step, value], ...]}}``; values are numbers, or tags of the
state tree where JSON has no number. The chain of parents gives the curve of a whole run, each step once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec

from unbroken.checkpoint.chunks import READERS
from unbroken.checkpoint.committed import get_committed
from unbroken.checkpoint.tree import decode_tree, encode_tree
from unbroken.checkpoint.versions import require_format
from unbroken.errors import DamagedError, FormatError
from unbroken.journal import CheckpointRecord, RunState
from unbroken.store import Store

FORMAT = 1
"""Of the object: the same for one rank and for many."""

Metrics = dict[str, list[tuple[int, float]]]
"""Logged values by name: (step, value), steps rising."""


class _Values(msgspec.Struct):
    values: dict[str, list[tuple[int, object]]]


_DECODER = msgspec.json.Decoder(_Values)


def metrics_between(metrics: Metrics, after: int, until: int) -> Metrics:
    """What was logged for the steps in ``(after, until]``; names without any are left out."""
    chosen = {name: [point for point in points if after < point[0] <= until] for name, points in metrics.items()}
    return {name: points for name, points in chosen.items() if points}


def encode_metrics(metrics: Metrics) -> bytes:
    """The bytes of a metrics object."""
    values = {
        name: [[step, encode_tree(value, f"the logged {name}")] for step, value in points]
        for name, points in metrics.items()
    }
    return msgspec.json.encode({"format": FORMAT, "values": values})


def read_metrics(store: Store, state: RunState, record: CheckpointRecord) -> Metrics:
    """All values logged on the way to a checkpoint.

    Raises:
        DamagedError: a metrics object is missing or is not what was committed, or the chain of parents is broken.
        FormatError: a newer version wrote one.
    """
    metrics: Metrics = {}
    with ThreadPoolExecutor(READERS, thread_name_prefix="unbroken-metrics") as pool:
        for part in pool.map(lambda commit: read_metrics_object(store, commit), _ancestry(state, record)):
            for name, points in part.items():
                metrics.setdefault(name, []).extend(points)
    return metrics


def _ancestry(state: RunState, record: CheckpointRecord) -> list[CheckpointRecord]:
    """The chain of parents that leads to a checkpoint, oldest first. A parent was committed before its child."""
    by_manifest = {commit.event.manifest: commit for commit in state.commits}
    chain = [record]
    while parent := chain[-1].event.parent:
        found = by_manifest.get(parent)
        if found is None or found.n >= chain[-1].n:
            raise DamagedError(
                f"the checkpoint of step {chain[-1].step} continues {parent}, which was not committed before it",
                kind="parent",
            )
        chain.append(found)
    return chain[::-1]


def read_metrics_object(store: Store, record: CheckpointRecord) -> Metrics:
    """The values that one checkpoint added.

    Raises:
        DamagedError: the object is missing or is not what was committed.
        FormatError: a newer version wrote it.
    """
    key = record.event.metrics
    if not key:
        return {}
    data = get_committed(store, key, record.event.metrics_sha256)
    require_format(data, key, newest=FORMAT)
    try:
        values = _DECODER.decode(data).values
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DamagedError(f"{key} is no metrics object ({error})", kind="metrics") from error
    return {name: [(step, _number(value, name, key)) for step, value in points] for name, points in values.items()}


def _number(node: object, name: str, key: str) -> float:
    value = decode_tree(node)
    if isinstance(value, int | float):
        return value
    raise FormatError(f"{key} holds a {type(value).__name__} for {name}, where numbers belong", kind="metrics")
