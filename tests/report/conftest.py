"""Journals written by hand, with moments that the test chooses."""

from __future__ import annotations

import pytest

from unbroken.journal.events import (
    AttemptClaimed,
    AttemptEnded,
    CheckpointCommitted,
    Entry,
    Event,
    Note,
    Origin,
)
from unbroken.journal.state import RunState


class HandJournal:
    """Entries with moments that the test chooses, and the state that follows from them."""

    def __init__(self, *, price: float | None = None) -> None:
        self.entries: list[Entry] = []
        self.state = RunState()
        self.attempt = 0
        self._parent = ""
        self._origin = Origin("host", 1, pool="pool", price=price, currency="USD" if price else "")

    def claim(self, at: float, purpose: str = "") -> None:
        self.attempt += 1
        self.add(at, AttemptClaimed(purpose=purpose))

    def restored(self, at: float, step: int) -> None:
        self.add(at, Note("restored", f"from step {step}", {"step": step}))

    def commit(self, at: float, step: int, *, seconds: float = 0.0) -> None:
        manifest = f"manifests/{step}-{self.attempt}"
        self.add(at, CheckpointCommitted(step, manifest, "", 1000, 1000, parent=self._parent, seconds=seconds))
        self._parent = manifest

    def end(self, at: float, cause: str, step: int) -> None:
        self.add(at, AttemptEnded(cause, step))

    def add(self, at: float, event: Event, *, attempt: int | None = None) -> None:
        number = self.attempt if attempt is None else attempt
        n = len(self.entries) + 1
        entry = Entry(n, number, f"claim{number}", f"nonce{n}", at, self._origin, event)
        self.entries.append(entry)
        self.state.apply(entry)


@pytest.fixture
def hand() -> HandJournal:
    """An empty journal of attempts whose machine cost 6 an hour."""
    return HandJournal(price=6.0)


@pytest.fixture
def interrupted(hand: HandJournal) -> HandJournal:
    """Three attempts: interrupted with notice at step 30, killed with its agent after step 50, finished at 100."""
    hand.claim(1000.0)
    hand.restored(1002.0, 0)
    hand.commit(1023.0, 20, seconds=1.0)
    hand.commit(1033.0, 30, seconds=1.0)
    hand.end(1034.0, "interrupted", 30)
    hand.claim(1040.0)
    hand.restored(1042.0, 30)
    hand.commit(1063.0, 50, seconds=1.0)
    hand.claim(1080.0)
    hand.restored(1082.0, 50)
    hand.commit(1133.0, 100, seconds=1.0)
    hand.end(1134.0, "finished", 100)
    return hand
