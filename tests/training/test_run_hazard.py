"""A run with ``every="auto"`` knows how often it was interrupted before."""

from __future__ import annotations

import pytest

from unbroken.journal import Journal, Origin
from unbroken.journal.events import AttemptEnded, Note
from unbroken.store import open_store
from unbroken.testing import FakeClock
from unbroken.training import run as module
from unbroken.training.cadence import Cadence, Hazard


@pytest.mark.parametrize("interruptions", [0, 3])
def test_auto_takes_the_hazard_from_the_journal(training, uri, monkeypatch, interruptions):
    clock = FakeClock()
    journal, origin = Journal.create(open_store(uri, create=True), clock=clock), Origin("host", 1)
    for _ in range(interruptions):
        lease = journal.claim(origin)
        clock.advance(3600.0)
        journal.append(Note("restored", "from the start", {"step": 0}), origin, lease)
        journal.append(AttemptEnded("interrupted", 1), origin, lease)
    found: list[Hazard | None] = []

    def remembered(*args, hazard, **options):
        found.append(hazard)
        return Cadence(*args, hazard=hazard, **options)

    monkeypatch.setattr(module, "Cadence", remembered)
    training(uri, every="auto").train(3)
    assert [hazard is not None for hazard in found] == [interruptions > 0]
