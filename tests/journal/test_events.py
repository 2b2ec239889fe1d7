"""The wire form of journal entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import DamagedError, FormatError
from unbroken.journal import Entry, Event, Origin, RunState
from unbroken.journal.events import (
    Advisory,
    AttemptClaimed,
    AttemptEnded,
    CheckpointCommitted,
    CheckpointRetired,
    Decided,
    Note,
    Notice,
    RunFinished,
    Unknown,
    decode_entry,
    encode_entry,
)

_text = st.text(max_size=20)
_seconds = st.floats(0, 1e10)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(_text, below, max_size=3),
    max_leaves=6,
)
_step = st.integers(-1, 2**53)
_events: st.SearchStrategy[Event] = st.one_of(
    st.builds(AttemptClaimed, st.lists(_text, max_size=3)),
    st.builds(AttemptEnded, _text, _step, _text),
    st.builds(Notice, _text, _text, _seconds),
    st.builds(Advisory, _text, _text),
    st.builds(
        CheckpointCommitted, _step, _text, _text, _step, _step, _text, _text, _text, stall=_seconds, seconds=_seconds
    ),
    st.builds(CheckpointRetired, _text, _step),
    st.builds(RunFinished, _step),
    st.builds(Note, _text, _text, st.dictionaries(_text, _json, max_size=3)),
    st.builds(Decided, _text, _text, _text, _text, st.dictionaries(_text, _seconds, max_size=3)),
)
_origins = st.builds(Origin, _text, st.integers(0, 2**22), _text, st.none() | _seconds, _text)
_numbers = st.integers(1, 99_999_999_999)
_entries = st.builds(Entry, _numbers, _numbers, _text, _text, _seconds, _origins, _events)


def written(**changes: Any) -> bytes:
    """An entry as a writer of ours makes it, with changes."""
    entry = {
        "n": 7, "attempt": 2, "claim": "c", "nonce": "x", "at": 5.0,
        "origin": {"host": "h", "pid": 1}, "event": {"type": "run-finished", "step": 9},
    }  # fmt: skip
    return json.dumps({**entry, **changes}).encode()


@given(entry=_entries)
def test_every_event_comes_back_as_it_was_written(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry), "key") == entry


@given(entry=_entries)
def test_an_entry_is_plain_json_with_the_type_in_the_event(entry: Entry) -> None:
    document = json.loads(encode_entry(entry))
    assert document["n"] == entry.n
    assert document["event"]["type"] == entry.event.__struct_config__.tag
    assert "format" not in document


def test_fields_that_we_do_not_know_are_passed_over() -> None:
    data = written(
        later="x", origin={"host": "h", "pid": 1, "rack": 4}, event={"type": "run-finished", "step": 9, "why": []}
    )
    assert decode_entry(data, "key") == Entry(7, 2, "c", "x", 5.0, Origin("h", 1), RunFinished(9))


def test_an_event_that_we_do_not_know_is_kept_as_unknown() -> None:
    entry = decode_entry(written(event={"type": "machine-changed", "to": "h200"}), "key")
    assert (entry.n, entry.attempt) == (7, 2)
    assert entry.event == Unknown("machine-changed", {"to": "h200"})


def test_an_entry_of_a_newer_format_is_refused_whatever_it_holds() -> None:
    newer = json.dumps({"format": 2, "event": {"type": "run-finished"}, "who": "knows"}).encode()
    with pytest.raises(FormatError) as caught:
        decode_entry(newer, "journal/00000000007.json")
    assert (caught.value.kind, caught.value.exit_code) == ("newer-format", 13)
    assert "journal/00000000007.json" in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b"\xff\xfe",
        written()[:-1],
        written(n="7"),
        written(n=0),
        written(attempt=0),
        written(origin=None),
        written(event={"step": 9}),
        written(event={"type": 5}),
        written(event={"type": "run-finished"}),
        written(event={"type": "run-finished", "step": "nine"}),
        written(event={"type": "machine-changed"}, nonce=None),
    ],
)
def test_bytes_that_are_no_entry_are_damage(data: bytes) -> None:
    with pytest.raises(DamagedError) as caught:
        decode_entry(data, "journal/00000000007.json")
    assert (caught.value.kind, caught.value.exit_code) == ("journal-entry", 12)
    assert "journal/00000000007.json" in caught.value.message


def test_the_example_of_the_specification_is_read() -> None:
    specification = Path(__file__).parents[2] / "docs" / "spec" / "journal-v1.md"
    lines = [line for line in specification.read_text().splitlines() if line.startswith('{"n":')]
    entries = [decode_entry(line.encode(), "specification") for line in lines]
    assert [entry.n for entry in entries] == list(range(1, len(entries) + 1))
    assert {type(entry.event) for entry in entries} == {
        AttemptClaimed, AttemptEnded, Notice, Advisory, CheckpointCommitted, CheckpointRetired, RunFinished, Note,
    }  # fmt: skip
    for entry, line in zip(entries, lines, strict=True):
        assert encode_entry(entry) == line.encode()
    state = RunState()
    for entry in entries:
        state.apply(entry)
    assert [record.step for record in state.checkpoints] == [648, 1000]
    assert state.finished_step == 1000
    assert [entry.n for entry in state.ignored] == [9]
