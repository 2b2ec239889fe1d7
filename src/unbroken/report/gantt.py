"""The attempts of a run as bars over time, in plain characters that every terminal and log has."""

from __future__ import annotations

from collections.abc import Sequence

from unbroken.clock import format_duration
from unbroken.report.causes import CAUSE_TEXT, MICROS, Cause, Span

MARKS = {
    Cause.USEFUL: "#",
    Cause.STALLS: "s",
    Cause.REPEATED: "x",
    Cause.RESTART: "r",
    Cause.WAITING: ".",
    Cause.SILENT: "?",
    Cause.UNDURABLE: "+",
}
MOST_ROWS = 40
"""Attempts drawn: the newest ones."""
_LEAST_BAR = 10


def gantt(spans: Sequence[Span], width: int) -> list[str]:
    """Lines of at most ``width`` columns (20 at least): a row for each attempt, an axis, and what the marks mean.

    A column shows the cause with the most time in it, among those of its row; an attempt of less than a column has one
    mark. The time before an attempt, since the one before, stands in its row.
    """
    rows = _rows(spans)
    if not rows:
        return []
    left_out = max(0, len(rows) - MOST_ROWS)
    label = max(len(str(number)) for number, _ in rows)
    bar = max(_LEAST_BAR, width - label - 1)
    begin, end = spans[0].begin, spans[-1].end
    lines = [f"{left_out} earlier attempts are not drawn"] if left_out else []
    lines += [f"{number:>{label}} {_bar(row, begin, end, bar)}".rstrip() for number, row in rows[left_out:]]
    lines.append(" " * (label + 1) + _axis(end - begin, bar))
    return lines + _legend({span.cause for span in spans}, width)


def _rows(spans: Sequence[Span]) -> list[tuple[int, list[Span]]]:
    """Spans by attempt, each with the gap before it. Attempts that took no time have no span and no row."""
    rows: list[tuple[int, list[Span]]] = []
    gap: list[Span] = []
    for span in spans:
        if span.attempt == 0:
            gap.append(span)
        elif rows and rows[-1][0] == span.attempt and not gap:
            rows[-1][1].append(span)
        else:
            rows.append((span.attempt, [*gap, span]))
            gap = []
    if gap and rows:
        rows[-1][1].extend(gap)
    return rows


def _bar(row: Sequence[Span], begin: int, end: int, columns: int) -> str:
    whole = max(1, end - begin)
    shares: list[dict[Cause, int]] = [{} for _ in range(columns)]
    for span in row:
        first = (span.begin - begin) * columns // whole
        last = max(first, -(-(span.end - begin) * columns // whole) - 1)
        for column in range(first, min(columns, last + 1)):
            inside = min((span.end - begin) * columns, (column + 1) * whole)
            inside -= max((span.begin - begin) * columns, column * whole)
            shares[column][span.cause] = shares[column].get(span.cause, 0) + inside
    marks = [MARKS[max(share, key=share.__getitem__)] if share else " " for share in shares]
    return "".join(_with_attempt(marks, row, begin, whole))


def _with_attempt(marks: list[str], row: Sequence[Span], begin: int, whole: int) -> list[str]:
    """See that the attempt itself has a mark, not only the gap before it."""
    own = [span for span in row if span.attempt]
    if own and all(mark in " .?" for mark in marks):
        longest = max(own, key=lambda span: span.micros)
        marks[min(len(marks) - 1, (longest.begin - begin) * len(marks) // whole)] = MARKS[longest.cause]
    return marks


def _axis(micros: int, columns: int) -> str:
    right = format_duration(micros / MICROS)
    return "0" + right.rjust(columns - 1, "-")


def _legend(causes: set[Cause], width: int) -> list[str]:
    lines = [""]
    for cause in (cause for cause in Cause if cause in causes):
        piece = f"{MARKS[cause]} {CAUSE_TEXT[cause]}"
        if lines[-1] and len(lines[-1]) + 3 + len(piece) > width:
            lines.append("")
        lines[-1] += f"   {piece}" if lines[-1] else piece
    return lines
