"""Plain values as YAML, in the order given, with a comment above a line that needs its reason."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Any

import yaml

_WIDTH = 110
_BARE = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*|--?[a-z][A-Za-z0-9./=-]*")
_WORDS = frozenset("y yes n no on off true false null".split())
"""Which a reader of YAML 1.1, as many tools still are, takes for something else than text."""


@dataclass(frozen=True)
class Why:
    """A value together with the reason for it."""

    value: Any
    reason: str


def plain(value: Any) -> Any:
    """The value without reasons."""
    if isinstance(value, Why):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def yaml_text(value: dict[str, Any], about: str = "") -> str:
    """One document, without the line that parts it from others; the same text for the same value."""
    return "\n".join([*_comment(about, ""), *_mapping(value, "")]) + "\n"


def scalar(value: str | float | bool | None) -> str:
    """A value that is neither a mapping nor a list."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return str(value)
    if _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=1 << 30).rstrip("\n")


def _comment(text: str, indent: str) -> list[str]:
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, _WIDTH - len(indent) - 2)]
    return [f"{indent}# {line}" for line in lines]


def _split(value: Any, indent: str) -> tuple[Any, list[str]]:
    return (value.value, _comment(value.reason, indent)) if isinstance(value, Why) else (value, [])


def _mapping(value: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, entry in value.items():
        item, above = _split(entry, indent)
        lines += above
        lines += _entry(f"{indent}{scalar(key)}:", item, indent)
    return lines


def _entry(start: str, item: Any, indent: str) -> list[str]:
    if isinstance(item, dict):
        return [start, *_mapping(item, f"{indent}  ")] if item else [f"{start} {{}}"]
    if isinstance(item, list):
        return [start, *_sequence(item, f"{indent}  ")] if item else [f"{start} []"]
    return [f"{start} {scalar(item)}"]


def _sequence(value: list[Any], indent: str) -> list[str]:
    lines = []
    for entry in value:
        item, above = _split(entry, indent)
        lines += above
        if isinstance(item, dict) and item:
            # The dash belongs on the first line that is no comment; comments of the first key go above it.
            inner = _mapping(item, f"{indent}  ")
            first = next(number for number, line in enumerate(inner) if not line.lstrip().startswith("# "))
            lines += [f"{indent}{line.lstrip()}" for line in inner[:first]]
            lines += [f"{indent}- {inner[first].lstrip()}", *inner[first + 1 :]]
        else:
            lines.append(f"{indent}- {scalar(item) if not isinstance(item, dict | list) else _empty(item)}")
    return lines


def _empty(item: dict[str, Any] | list[Any]) -> str:
    if item:
        raise TypeError("a list of lists has no place in these documents")
    return "{}" if isinstance(item, dict) else "[]"
