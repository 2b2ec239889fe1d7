from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.notice.written import Written, parse_written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("", Written("none")),
        (" \n", Written("none")),
        ("none", Written("none")),
        ("stop", Written("stop")),
        ("STOP 90\n", Written("stop", seconds=90.0)),
        ("stop 2min: the queue is drained", Written("stop", seconds=120.0, reason="the queue is drained")),
        ("advise: prices rise", Written("advise", reason="prices rise")),
        ('{"action": "stop", "seconds": 45}', Written("stop", seconds=45.0)),
        ('{"action": "stop", "seconds": "90s"}', Written("stop", seconds=90.0)),
        ('{"action": "stop", "deadline": "2026-01-01T00:00:00Z"}', Written("stop", deadline=1767225600.0)),
        ('{"action": "stop", "deadline": 1767225600}', Written("stop", deadline=1767225600.0)),
        ('{"action": "advise", "reason": "a\\nb"}', Written("advise", reason="a b")),
    ],
)
def test_a_word_or_a_small_object_is_read(text: str, written: Written) -> None:
    assert parse_written(text.encode()) == written


@pytest.mark.parametrize(
    "data",
    [b"halt", b"stop soon", b"{", b"{}", b'{"action": "stop", "deadline": "soon"}', b"\xff", b'{"action": []}',
     b'{"action": "stop", "seconds": NaN}', b'{"action": "stop", "seconds": true}', b"stop inf", b"stop " + b"9" * 5000,
     b'{"action": "stop", "deadline": {}}', b'["stop"]'],
)  # fmt: skip
def test_anything_else_is_refused_with_what_was_found(data: bytes) -> None:
    with pytest.raises(ValueError, match="is no announcement"):
        parse_written(data)


@given(st.binary() | st.text().map(str.encode) | st.dictionaries(
    st.sampled_from(["action", "deadline", "seconds", "reason"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["stop", "advise", "none"]),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_is_written_is_read_or_refused(data: bytes) -> None:
    try:
        written = parse_written(data)
    except ValueError:
        return
    assert written.action in ("stop", "advise", "none")
    assert all(value is None or math.isfinite(value) for value in (written.deadline, written.seconds))


@given(st.floats(0, 1e6), st.text(st.characters(codec="ascii", exclude_categories=["C"])).map(str.strip))
def test_both_forms_say_the_same(seconds: float, reason: str) -> None:
    reason = " ".join(reason.split())
    document = json.dumps({"action": "stop", "seconds": seconds, "reason": reason}).encode()
    assert parse_written(f"stop {seconds!r}: {reason}".encode()) == parse_written(document)
