"""What a plan rests on, and that it says so."""

from __future__ import annotations

import pytest

from unbroken.journal import Entry, Event, Origin, RunState
from unbroken.journal.events import AttemptClaimed, AttemptEnded, CheckpointCommitted, Note
from unbroken.plan import Input, inputs_of

HOST = Origin("host", 1)


def folded(*written: tuple[float, int, Event]) -> RunState:
    """The state after (seconds, attempt, event)."""
    state = RunState()
    for n, (at, attempt, event) in enumerate(written, 1):
        state.apply(Entry(n, attempt, f"claim-{attempt}", f"nonce-{n}", at, HOST, event))
    return state


def lived(attempt: int, *, cause: str = "interrupted", last: int = 0) -> list[tuple[float, int, Event]]:
    """An attempt of an hour, begun at its number of hours: started in 60 s, one save, then gone."""
    begin, step = attempt * 4000.0, attempt * 10
    commit = CheckpointCommitted(step, f"manifests/{step}", "sha", 1, 1, stall=0.5 * attempt, seconds=20.0 * attempt)
    return [
        (begin, attempt, AttemptClaimed()),
        (begin + 60.0, attempt, Note("restored", "", {"step": step - 10})),
        (begin + 1800.0, attempt, commit),
        (begin + 3600.0, attempt, AttemptEnded(cause, last or step)),
    ]


def test_what_nobody_knows_is_assumed() -> None:
    found = inputs_of({}, None)
    assert {each.source for each in vars(found).values()} == {"assumed"}
    assert inputs_of({}, RunState()) == found


def test_what_is_given_outranks_what_was_measured() -> None:
    state = folded(*lived(1))
    found = inputs_of({"upload": 0.5}, state)
    assert found.upload == Input(0.5, "given")
    assert found.stall == Input(0.5 / 3600.0, "median of 1 saves")


def test_saves_starts_and_interruptions_are_measured_by_the_journal() -> None:
    state = folded(*lived(1), *lived(2), *lived(3, last=40))
    found = inputs_of({}, state)
    assert found.stall.value == pytest.approx(1.0 / 3600.0)
    assert found.upload.value == pytest.approx(40.0 / 3600.0)
    assert found.restart == Input(pytest.approx(60.0 / 3600.0), "median of 3 starts")
    assert found.hazard.value == pytest.approx(4.0 / 3.0)  # one more than were seen in three hours
    assert found.notice_success.value == pytest.approx(2.0 / 4.0)
    assert "3 attempts" in found.hazard.source
    assert found.wait.source == "assumed"
