"""Tables for people."""

from __future__ import annotations

import io
from typing import Any

import pytest

from unbroken.report import Sighting, build_timeline
from unbroken.report.text import attempts_table, format_size, make_console


def printed(journal: Any, sightings: dict[int, Sighting] | None = None) -> str:
    out = io.StringIO()
    make_console(out).print(attempts_table(build_timeline(journal.entries, journal.state, sightings)))
    return out.getvalue()


def test_a_row_tells_the_story_of_an_attempt(interrupted: Any) -> None:
    text = printed(interrupted, {2: Sighting(58, 1070.0, 1070.5, "SIGKILL of trainer and agent")})
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert rows[0] == ["1", "+0.0s", "34s", "0-30", "30", "0", "10s", "interrupted"]
    assert rows[1][:7] == ["2", "+40s", "30s", "30-58", "28", "8", "20s"]
    assert rows[2] == ["3", "+1m20s", "54s", "50-100", "50", "0", "-", "finished"]


def test_output_that_is_no_terminal_has_no_escape_codes(interrupted: Any) -> None:
    assert "\x1b" not in printed(interrupted)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_are_binary(size: int, text: str) -> None:
    assert format_size(size) == text
