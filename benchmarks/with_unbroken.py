"""Saving and restoring with ``unbroken.Run``, under the agent that it starts."""

from __future__ import annotations

import statistics
import time
from typing import Any

from training_state import Training

from unbroken import Run
from unbroken.journal import Journal
from unbroken.journal.events import Note
from unbroken.store import open_store

_BASELINE_STEPS = 10
_PROBES = 9
_FOREVER = 10**9


class Marks:
    """A part of the state that counts how often it was read: once for each save."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        self.count += 1
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def save(uri: str, training: Training, saves: int) -> dict[str, Any]:
    """Train, and save as soon as the save before is durable, until ``saves`` of them were begun.

    The next step begins as soon as a save lets the loop go on, and changes every tensor that is being uploaded.
    """
    state = {"model": training.model, "optimizer": training.optimizer, "marks": (marks := Marks())}
    begun: list[dict[str, Any]] = []
    digests: dict[int, list[str]] = {}
    with Run(uri, every="1ms", state=state) as run:
        baseline = training.baseline(_BASELINE_STEPS)
        read_before = marks.count
        boundary = boundary_at = time.monotonic()
        for step in run.steps(until=_FOREVER):
            stall = time.monotonic() - boundary
            if marks.count - read_before > len(begun):
                begun.append({"step": step, "at": boundary_at, "stall": stall, "lost": stall})
                if len(begun) == saves:
                    break
            took = training.timed_step()
            if begun:
                begun[-1]["lost"] += took - baseline
            digests[step + 1] = training.newest_digests
            boundary, boundary_at = time.monotonic(), time.time()
    begun[-1]["lost"] = None  # the loop ended while it was under way
    return {"saves": _with_commits(uri, begun), "baseline_step": baseline, "digests": digests[begun[-1]["step"]]}


def _with_commits(uri: str, begun: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add what the journal says of each save.

    A journal entry carries the time just before it was put, so the time of such a put, measured here, is added.
    """
    commits = {record.step: record for record in Journal.open(open_store(uri)).state.commits}
    put = _small_put(uri)
    return [
        {
            "stall": save["stall"], "lost": save["lost"], "stored": commits[save["step"]].event.written,
            "durable": commits[save["step"]].at - save["at"] + put, "commit_put": put,
        }
        for save in begun
    ]  # fmt: skip


def _small_put(uri: str) -> float:
    """Median seconds of a create-only put of a few bytes."""
    store = open_store(f"{uri}-probe", create=True)
    seconds = []
    for number in range(_PROBES):
        began = time.monotonic()
        store.create(f"journal/{number}.json", b"x" * 600)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def restore(uri: str, training: Training) -> dict[str, Any]:
    """Open the run, which restores the newest checkpoint, verified, into the live objects."""
    state = {"model": training.model, "optimizer": training.optimizer, "marks": Marks()}
    began = time.monotonic()
    with Run(uri, every="10h", state=state):
        opened = time.monotonic() - began
        digests = training.digests()
    notes = [entry.event for entry in Journal.open(open_store(uri)).state.notes]
    told = [note for note in notes if isinstance(note, Note) and note.topic == "restored"][-1]
    return {"restore": told.data["seconds"], "open_and_restore": opened, "digests": digests}
