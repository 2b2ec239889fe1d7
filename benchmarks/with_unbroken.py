"""Saving and restoring with ``unbroken.Run``, under the agent that it starts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from method import Place
from training_state import Training

from unbroken import Run
from unbroken.journal import Journal
from unbroken.journal.events import Note
from unbroken.store import open_store

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


class Unbroken:
    """``run.steps``.

    Args:
        place: where to.
        training: what.
        options: of ``Run``, such as ``overlap``.
    """

    def __init__(self, place: Place, training: Training, **options: Any) -> None:
        self._uri = place.uri
        self._options = options
        self._marks = Marks()
        self._state = {"model": training.model, "optimizer": training.optimizer, "marks": self._marks}
        self._open = ExitStack()
        self._steps: Iterator[int] = iter(())
        self._seen = 0
        self._saved_steps: list[int] = []

    def open(self, every: int) -> None:
        run = self._open.enter_context(Run(self._uri, every=every, state=self._state, **self._options))
        self._seen = self._marks.count
        self._steps = run.steps(until=_FOREVER)
        next(self._steps)

    def boundary(self, step: int, *, due: bool) -> bool:  # noqa: ARG002 - the run has its own cadence, the same one
        next(self._steps)
        if self._marks.count == self._seen:
            return False
        self._seen = self._marks.count
        self._saved_steps.append(step)
        return True

    def close(self) -> list[float]:
        """A journal entry carries the time just before it was put, so that of such a put, measured here, is added."""
        self._open.close()
        self._steps = iter(())
        commits = {record.step: record.at for record in Journal.open(open_store(self._uri)).state.commits}
        put = _small_put(self._uri)
        return [commits[step] + put for step in self._saved_steps]

    def restore(self) -> dict[str, Any]:
        began = time.monotonic()
        with Run(self._uri, every="10h", state=self._state):
            opened = time.monotonic() - began
        notes = [entry.event for entry in Journal.open(open_store(self._uri)).state.notes]
        told = [note for note in notes if isinstance(note, Note) and note.topic == "restored"][-1]
        return {"restore": told.data["seconds"], "open_and_restore": opened}


def _small_put(uri: str) -> float:
    """Median seconds of a create-only put of a few bytes."""
    store = open_store(f"{uri}-probe", create=True)
    seconds = []
    for number in range(_PROBES):
        began = time.monotonic()
        store.create(f"journal/{number}.json", b"x" * 600)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)
