"""What the reading verbs share: opening a run, choosing a checkpoint, printing JSON."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from unbroken.errors import NotFoundError
from unbroken.journal import CheckpointRecord, Journal
from unbroken.store import open_store


def open_run(uri: str) -> Journal:
    """The journal of the run at ``uri``.

    Raises:
        NotFoundError: there is no such folder, bucket or run.
    """
    return Journal.open(open_store(uri))


def kept_checkpoints(journal: Journal, step: int | None) -> list[CheckpointRecord]:
    """The kept checkpoints in the order of their commits; with ``step``, the newest of that step alone.

    Raises:
        NotFoundError: the run has none, or none of that step.
    """
    kept = journal.state.checkpoints
    if not kept:
        raise NotFoundError(f"{journal.store.uri} has no checkpoint yet", kind="checkpoint")
    if step is None:
        return list(kept)
    found = [record for record in kept if record.step == step]
    if not found:
        steps = sorted({record.step for record in kept})
        near = min(steps, key=lambda other: abs(other - step))
        raise NotFoundError(
            f"{journal.store.uri} has no checkpoint of step {step}", kind="checkpoint",
            hint=f"The nearest is of step {near}; unbroken ls lists all {len(steps)}",
        )  # fmt: skip
    return found[-1:]


def print_json(document: dict[str, Any]) -> None:
    """Print a document, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
