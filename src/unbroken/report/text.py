"""Tables and numbers for people, with rich; plain where the output is no terminal or NO_COLOR is set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table

from unbroken.clock import format_duration
from unbroken.report.timeline import AttemptLine

_PLAIN_WIDTH = 140
"""Columns where the output is no terminal: tables must not be folded by a width nobody has."""


def make_console(file: IO[str] | None = None) -> Console:
    """A console for ``file``, standard output by default."""
    console = Console(file=file, highlight=False, soft_wrap=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = _PLAIN_WIDTH
    return console


def make_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; the columns named in ``right`` are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name in right)
    return table


def format_size(size: float) -> str:
    """Write bytes for people: ``512 B``, ``1.5 KiB``, ``3.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def attempts_table(timeline: Sequence[AttemptLine]) -> Table:
    """The attempts, one a row; ``began`` counts from the first claim."""
    numbers = ("attempt", "began", "lasted", "steps", "done", "repeated", "lost")
    table = make_table(*numbers, "why it ended", right=numbers)
    start = timeline[0].began_at if timeline else 0.0
    for line in timeline:
        table.add_row(
            str(line.attempt),
            "+" + format_duration(line.began_at - start),
            format_duration(line.seconds),
            _span(line),
            str(line.steps_done),
            str(line.steps_repeated),
            _lost(line),
            line.cause or "goes on",
        )
    return table


def _span(line: AttemptLine) -> str:
    begin = "?" if line.restored_step < 0 else str(line.restored_step)
    end = "?" if line.last_step < 0 else str(line.last_step)
    return f"{begin}-{end}"


def _lost(line: AttemptLine) -> str:
    if line.caught_up_at is None:
        return "-"
    return format_duration(line.lost_seconds or 0.0)
