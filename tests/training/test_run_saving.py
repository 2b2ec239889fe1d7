"""What a loop sees of saving: the cadence that measures itself, warnings, and hosts with too little memory."""

from __future__ import annotations

import msgspec
import pytest

import unbroken
from unbroken.checkpoint import CheckpointWriter
from unbroken.errors import ConfigError
from unbroken.journal.events import Note
from unbroken.training import auto_cadence, cadence, staging
from unbroken.training.memory import Room


def notes(journal, topic):
    events = [entry.event for entry in journal.state.notes]
    return [event for event in events if isinstance(event, Note) and event.topic == topic]


@pytest.fixture
def slow_saves(monkeypatch, agent_here):
    """Every save says that it took 140 seconds."""
    write = CheckpointWriter.write

    def slow(self, state, **options):
        event = write(self, state, **options)
        return msgspec.structs.replace(event, seconds=140.0, written=61_000_000_000)

    monkeypatch.setattr(CheckpointWriter, "write", slow)
    return agent_here


def test_every_auto_saves_from_what_saves_cost(training, uri, journal, monkeypatch):
    monkeypatch.setattr(auto_cadence, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(cadence, "FIRST_STEPS", 2)
    monkeypatch.setattr(auto_cadence, "SHORTEST", 0.0)
    measured = auto_cadence.Pace.measured
    seen = []

    def free(self, stall, durable):
        seen.append((stall, durable))
        return measured(self, 0.0, 0.0)  # however slow this machine is at the moment

    monkeypatch.setattr(auto_cadence.Pace, "measured", free)
    training(uri, every="auto").train(12)
    assert all(0 < stall < durable for stall, durable in seen)
    steps = [record.step for record in journal().state.commits]
    assert steps[0] == 2
    assert steps[-1] == 12
    assert len(steps) > 3  # each was measured, and cost so little that the next one followed soon


def test_every_auto_without_measurements_saves_at_the_end_only(training, uri, journal):
    """The first save comes after a minute: this run is shorter."""
    training(uri, every="auto").train(12)
    assert [record.step for record in journal().state.commits] == [12]


@pytest.mark.parametrize(("every", "keep"), [("auto", None), ("auto", "last=2"), (4, None)])
def test_saves_that_follow_by_themselves_and_are_all_kept_are_said_at_the_start_and_in_bytes_an_hour(
    training, uri, journal, caplog, monkeypatch, slow_saves, every, keep
):
    monkeypatch.setattr(auto_cadence, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(cadence, "FIRST_STEPS", 2)
    monkeypatch.setattr(auto_cadence, "SHORTEST", 0.0)
    one = training(uri)
    one.run = unbroken.Run(uri, every=every, keep=keep, state=one.state)
    one.train(12)
    at_start = [line for line in caplog.messages if "without keep= no checkpoint is ever deleted" in line]
    figures = [line for line in caplog.messages if "a save wrote 61 GB, and one follows every 2m20s" in line]
    alone = every == "auto" and keep is None
    assert (len(at_start), len(figures)) == ((1, 1) if alone else (0, 0))
    if alone:
        assert "up to 1.6 TB an hour" in figures[0]
        told = [note.text for note in notes(journal(), "retention")]
        assert [text in line for text, line in zip(told, at_start + figures, strict=True)] == [True, True]


@pytest.mark.usefixtures("slow_saves")
def test_the_first_save_that_cannot_fit_the_notice_is_said_once(training, uri, journal, caplog, monkeypatch):
    monkeypatch.setenv("UNBROKEN_GRACE", "120")
    training(uri).train(11)
    said = [line for line in caplog.messages if "61 GB takes 140 s here; the notice is 120 s" in line]
    assert len(said) == 1
    assert "the newest scheduled checkpoint will stand" in said[0]
    assert [note.text in said[0] for note in notes(journal(), "notice-too-short")] == [True]


@pytest.mark.usefixtures("slow_saves")
def test_a_save_that_fits_the_notice_is_not_spoken_of(training, uri, journal, monkeypatch):
    monkeypatch.setenv("UNBROKEN_GRACE", "1000")
    training(uri).train(11)
    assert notes(journal(), "notice-too-short") == []


def test_an_advice_of_the_cadence_reaches_the_user_and_the_journal(training, uri, journal, caplog, monkeypatch):
    monkeypatch.setattr(auto_cadence, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(cadence, "FIRST_STEPS", 1)
    monkeypatch.setattr(auto_cadence.Pace, "advice", lambda self: "" if self._told else self._told.add(1) or "too dear")
    training(uri, every="auto").train(5)
    assert [note.text for note in notes(journal(), "cadence")] == ["too dear"]
    assert "too dear" in caplog.text


@pytest.mark.parametrize(
    ("slots", "words"),
    [(1, "memory for one copy of the state only"), (0, "no memory for a copy of the state")],
)
def test_a_host_without_memory_for_two_copies_saves_more_slowly_and_says_so(
    training, uri, interrupt, truth, journal, caplog, monkeypatch, slots, words
):
    for module in ("slots", "memory"):
        monkeypatch.setattr(f"unbroken.training.{module}.kept_back", lambda _: 0)
    room = Room(slots * 30_000, "the test")  # the state takes some 21,000 bytes
    init = staging.StagingArea.__init__
    monkeypatch.setattr(staging.StagingArea, "__init__", lambda self, **given: init(self, **given, room=lambda: room))
    with pytest.raises(unbroken.Interrupted, match="step 7 is durable"):
        training(uri).train(11, {6: interrupt})
    assert words in caplog.text
    assert training(uri, seed=3).train(11).bits() == truth
    assert {4, 7, 11} <= {record.step for record in journal().state.commits}


def test_a_program_that_moves_parameters_before_the_optimizer_gets_the_next_boundary(
    training, uri, truth, journal, caplog, monkeypatch
):
    """A snapshot in which a tensor moved is thrown away, said, and taken again at once."""
    monkeypatch.setattr(staging, "WORTH_DEFERRING", 0)
    spoil = {"left": 1}
    moved = staging.Versions.moved

    def once(self):
        if spoil["left"]:
            spoil["left"] -= 1
            self._moved = "model/0.weight"
        return moved(self)

    init = staging.StagingArea.__init__
    monkeypatch.setattr(staging.StagingArea, "__init__", lambda self, **given: init(self, **given, worth_deferring=0))
    monkeypatch.setattr(staging.Versions, "moved", once)
    assert training(uri).train(11).bits() == truth
    assert "model/0.weight was changed between a step boundary and the next optimizer step" in caplog.text
    assert [record.step for record in journal().state.commits][:2] == [5, 8]
    assert [note.data["step"] for note in notes(journal(), "save-failed")] == [4]


@pytest.mark.parametrize("every", ["auto,cap=0%", "auto,los=3min", "auto,cap=1%,cap=2%"])
def test_a_wrong_auto_is_refused_at_once(training, uri, every):
    with pytest.raises(ConfigError, match="every="):
        training(uri, every=every).run  # noqa: B018 - made when asked for
