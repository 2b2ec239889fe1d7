"""The drawing of attempts over time."""

from __future__ import annotations

from typing import Any

import pytest

from unbroken.report.causes import Cause, Span, spans_of
from unbroken.report.gantt import MOST_ROWS, gantt


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_drawing_fits_and_uses_the_width(interrupted: Any, width: int) -> None:
    lines = gantt(spans_of(interrupted.entries, interrupted.state), width)
    assert all(len(line) <= width for line in lines)
    assert len(lines[2]) == width  # the last attempt ends at the right edge
    assert lines[3].startswith("  0--")
    assert lines[3].endswith("-2m14s")


def test_rows_show_each_cause_where_it_was(interrupted: Any) -> None:
    lines = gantt(spans_of(interrupted.entries, interrupted.state), 2 + 134)  # one column a second
    assert lines[0] == "1 rr" + "#" * 30 + "sr"
    assert lines[1] == "2 " + " " * 34 + "......rr" + "#" * 20 + "x"
    assert lines[2] == "3 " + " " * 63 + "?" * 17 + "rr" + "#" * 50 + "sr"
    assert "# work that counts" in lines[4]


def test_an_attempt_shorter_than_a_column_still_has_a_mark() -> None:
    hour = 3_600_000_000
    spans = [
        Span(1, Cause.USEFUL, 0, 1000 * hour, True),
        Span(0, Cause.WAITING, 1000 * hour, 2000 * hour, False),
        Span(2, Cause.RESTART, 2000 * hour, 2000 * hour + 1, True),
        Span(0, Cause.WAITING, 2000 * hour + 1, 3000 * hour, False),
        Span(3, Cause.USEFUL, 3000 * hour, 4000 * hour, True),
    ]
    assert "r" in gantt(spans, 80)[1][2:]


def test_many_attempts_show_the_newest_and_say_so() -> None:
    spans = [Span(i + 1, Cause.USEFUL, i * 1000, (i + 1) * 1000, True) for i in range(MOST_ROWS + 60)]
    lines = gantt(spans, 80)
    assert lines[0] == "60 earlier attempts are not drawn"
    assert lines[1].split()[0] == "61"
    assert max(map(len, lines)) <= 80


def test_nothing_is_drawn_of_nothing() -> None:
    assert gantt([], 80) == []
