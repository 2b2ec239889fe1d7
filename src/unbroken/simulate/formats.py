"""Reading traces as others have published them; which form a file has is seen from its content.

| form | looks like | published by |
|---|---|---|
| ticks | ``{"metadata": {"gap_seconds": 300}, "data": [n, ...], "prices": [...]}`` | SkyPilot spot-traces |
| comings and goings | ``ms,add|remove,node`` | Bamboo |
| dated counts | ``YYYY-MM-DD, HH:MM:SS, n``, in any order | Bamboo |
| counts | ``time,n``: hours with a decimal point, whole milliseconds or whole seconds | Bamboo, Parcae |
| segments | ``[ms, "add|remove|no-op|migration", {"nodes": [...]}]`` a line | Parcae |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from unbroken.simulate.trace import Trace, from_changes, trace_error

TICK_HOURS = 1.0 / 60.0
"""Ticks of the forms that have none of their own: a minute."""
_UNIT_HOURS = {"ms": 1.0 / 3_600_000.0, "s": 1.0 / 3600.0, "h": 1.0}
_TOO_LARGE = 10_000_000
_Lines = list[tuple[int, list[str]]]


def read_trace(path: Path, unit: str | None = None) -> Trace:
    """The trace in a file.

    Args:
        unit: ``ms``, ``s`` or ``h``, of the times in a file of counts, where it cannot be seen.

    Raises:
        ConfigError: it cannot be read, has none of the forms, or its values cannot be (kind ``trace``).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise trace_error(str(path), f"it cannot be read: {error}") from error
    return parse_trace(path.name, text, unit)


def parse_trace(name: str, text: str, unit: str | None = None) -> Trace:
    """The same from text."""
    begin = text.lstrip()[:1]
    if begin == "{":
        return _ticks(name, _json(name, text))
    if begin == "[":
        return _segments(name, text)
    lines = [(number, [part.strip() for part in line.split(",")]) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, parts) for number, parts in lines if any(parts)]
    parse = _form_of(lines)
    if parse is None:
        found = f"its first line, {text.strip().splitlines()[0][:60]!r}, has no known form" if lines else "it is empty"
        raise trace_error(name, found, "docs/simulate.md lists the forms")
    return parse(name, lines, unit)


def _form_of(lines: _Lines) -> Callable[[str, _Lines, str | None], Trace] | None:
    first = lines[0][1] if lines else []
    if len(first) == 3 and first[1] in ("add", "remove"):
        return _comings
    if len(first) == 3 and first[0].count("-") == 2:
        return _dated
    if len(first) == 2:
        return _counts
    return None


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise trace_error(name, f"it is not JSON: {error}") from error


def _ticks(name: str, document: Any) -> Trace:
    metadata = document.get("metadata")
    gap = _number(name, metadata.get("gap_seconds") if isinstance(metadata, dict) else None, "metadata.gap_seconds")
    data, prices = document.get("data"), document.get("prices")
    if not isinstance(data, list) or not (prices is None or isinstance(prices, list)):
        raise trace_error(name, "its data are no list of counts, or its prices no list")
    counts = np.array([_count(name, value, f"data[{index}]") for index, value in enumerate(data)], dtype=np.int64)
    if prices is not None:
        known = [
            math.nan if value is None else _number(name, value, f"prices[{at}]") for at, value in enumerate(prices)
        ]
        return Trace(name, gap / 3600.0, counts, np.array(known, dtype=float), f"ticks of {gap:g} s, with prices")
    return Trace(name, gap / 3600.0, counts, None, f"ticks of {gap:g} s")


def _segments(name: str, text: str) -> Trace:
    present: set[str] = set()
    changes: list[tuple[float, int]] = []
    end = 0.0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        entry = _json(f"{name}, line {number},", line)
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], dict)):
            raise trace_error(name, f"line {number} is not [ms, event, details]")
        at = _number(name, entry[0], f"the time in line {number}") * _UNIT_HOURS["ms"]
        nodes = entry[2].get("nodes", [])
        if not (isinstance(nodes, list) and all(isinstance(node, str) for node in nodes)):
            raise trace_error(name, f"the nodes in line {number} are no list of names")
        _apply(name, present, str(entry[1]), nodes, number)
        changes.append((at, len(present)))
        lasts = _number(name, entry[2].get("duration", 0), f"the duration in line {number}") * _UNIT_HOURS["ms"]
        end = max(end, at + lasts)
    return from_changes(name, _closed(changes, end), TICK_HOURS, "segments")


def _comings(name: str, lines: _Lines, unit: str | None) -> Trace:
    present: set[str] = set()
    events: list[tuple[float, int, list[str]]] = []
    for number, parts in lines:
        _expect(name, number, parts, 3)
        at = _number(name, parts[0], f"the time in line {number}")
        events.append((at * _UNIT_HOURS[unit or "ms"], number, parts))
    changes = []
    for at, number, parts in sorted(events, key=lambda event: event[0]):
        _apply(name, present, parts[1], [parts[2]], number)
        changes.append((at, len(present)))
    return from_changes(name, changes, TICK_HOURS, "comings and goings")


def _apply(name: str, present: set[str], event: str, nodes: list[str], number: int) -> None:
    if event == "add":
        present.update(nodes)
    elif event == "remove":
        present.difference_update(nodes)
    elif event not in ("no-op", "migration"):
        raise trace_error(name, f"the event {event[:40]!r} in line {number} is none of add, remove, no-op, migration")


def _dated(name: str, lines: _Lines, unit: str | None) -> Trace:  # noqa: ARG001 - all forms are called alike
    changes = []
    for number, parts in lines:
        _expect(name, number, parts, 3)
        try:
            moment = datetime.strptime(f"{parts[0]} {parts[1]}", "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        except ValueError as error:
            raise trace_error(name, f"line {number} has no date and time: {error}") from error
        changes.append((moment.timestamp() / 3600.0, _count(name, parts[2], f"line {number}")))
    return from_changes(name, changes, TICK_HOURS, "dated counts")


def _counts(name: str, lines: _Lines, unit: str | None) -> Trace:
    for number, parts in lines:
        _expect(name, number, parts, 2)
    unit = unit or _unit_of([parts[0] for _, parts in lines])
    changes = [
        (
            _number(name, parts[0], f"the time in line {number}") * _UNIT_HOURS[unit],
            _count(name, parts[1], f"line {number}"),
        )
        for number, parts in lines
    ]
    return from_changes(name, changes, TICK_HOURS, f"counts, times taken for {unit}")


def _unit_of(times: list[str]) -> str:
    """Published files have hours with decimals, milliseconds in whole minutes, or whole seconds."""
    if any("." in time for time in times):
        return "h"
    digits = [int(time) for time in times if time.isdigit() and len(time) < 16]
    return "ms" if digits and max(digits) >= 60_000 and all(time % 60_000 == 0 for time in digits) else "s"


def _closed(changes: list[tuple[float, int]], end: float) -> list[tuple[float, int]]:
    """With the end of what the last entry says."""
    last = max(changes, key=lambda change: change[0], default=(0.0, 0))
    return [*changes, (end, last[1])] if end > last[0] else changes or [last]


def _expect(name: str, number: int, parts: list[str], columns: int) -> None:
    if len(parts) != columns:
        raise trace_error(name, f"line {number} has {len(parts)} columns where the first has {columns}")


def _number(name: str, value: Any, where: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise trace_error(name, f"{where} is {str(value)[:40]!r}, which is no number") from None
    if not 0.0 <= number < 1e15:
        raise trace_error(name, f"{where} is {number:g}")
    return number


def _count(name: str, value: Any, where: str) -> int:
    number = _number(name, value, where)
    if number != int(number) or number > _TOO_LARGE:
        raise trace_error(name, f"{where} is {number:g}, which is no number of instances")
    return int(number)
