"""A YAML file as plain values, with the place of each of them.

The scalars are read by YAML 1.2's core schema, in which ``on``, ``no`` and ``12:30`` are text. A job file is a plain
tree: duplicate keys, aliases and tags are problems, so that what a person reads is what is run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[int | str, ...]
"""Where a value stands: keys, and positions in lists from 0."""


@dataclass(frozen=True)
class Place:
    """Line and column, both counted from 1."""

    line: int
    column: int

    @classmethod
    def of(cls, mark: yaml.Mark | None) -> Place | None:
        return None if mark is None else cls(mark.line + 1, mark.column + 1)


@dataclass(frozen=True)
class Problem:
    """One thing to mend: where, what was found, and what to do."""

    place: Place | None
    text: str
    hint: str = ""


@dataclass
class Document:
    """What a file holds."""

    value: Any = None
    places: dict[Path, Place] = field(default_factory=dict)
    """Of each key, and of each item of a list."""
    texts: dict[Path, str] = field(default_factory=dict)
    """Each scalar that is there, as it was typed: what a program is given must not be rewritten."""
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path) -> Place | None:
        """Of the value at ``path``, or of the nearest thing above it that is there."""
        return next((self.places[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.places), None)


class _Loader(yaml.SafeLoader):
    """Composes nodes; its scalars are those of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - the name and form are PyYAML's

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="a job file has no aliases: write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


_NULL, _BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))
_SCALARS = (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?[0-9]{1,1000}|0o[0-7]{1,1000}|0x[0-9a-fA-F]{1,1000}", list("-+0123456789")),
    (_FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+0123456789.")),
)  # fmt: skip
for _tag, _form, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_form})\Z"), _first)


def read_document(text: str) -> Document:
    """Read one YAML document. What is wrong stands in its ``problems``; nothing is raised."""
    document = Document()
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            document.value = _value(node, (), document)
    except yaml.MarkedYAMLError as error:
        document.problems.append(Problem(Place.of(error.problem_mark), f"this is not YAML: {error.problem}"))
    except yaml.YAMLError as error:
        document.problems.append(Problem(None, f"this is not YAML: {' '.join(str(error).split())}"))
    except RecursionError:
        document.problems.append(Problem(None, "this is nested too deeply for a job file"))
    finally:
        if loader is not None:
            loader.dispose()
    return document


def _value(node: yaml.Node, path: Path, document: Document) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return _sequence(node, path, document)
    if node.tag not in (_NULL, _BOOL, _INT, _FLOAT, _STR):
        document.problems.append(Problem(Place.of(node.start_mark), f"the tag {node.tag!r} has no meaning here"))
    if node.tag != _NULL:
        document.texts[path] = node.value
    return _scalar(node.tag, node.value)


def _mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.value:
        place = Place.of(key.start_mark)
        if not isinstance(key, yaml.ScalarNode):
            document.problems.append(Problem(place, "a key must be a word"))
            continue
        here = (*path, key.value)
        if key.value in found:
            before = document.places[here]
            document.problems.append(
                Problem(place, f"{key.value!r} is given twice, first in line {before.line}", "Leave one of them out")
            )
            continue
        if place is not None:
            document.places[here] = place
        found[key.value] = _value(value, here, document)
    return found


def _sequence(node: yaml.SequenceNode, path: Path, document: Document) -> list[Any]:
    found = []
    for index, item in enumerate(node.value):
        if (place := Place.of(item.start_mark)) is not None:
            document.places[(*path, index)] = place
        found.append(_value(item, (*path, index), document))
    return found


def _scalar(tag: str, text: str) -> Any:
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text.lower() == "true"
    try:
        if tag == _INT:
            return int(text[2:], 8 if text[1] == "o" else 16) if text[:2] in ("0o", "0x") else int(text)
        if tag == _FLOAT:
            return float(text.replace(".inf", "inf").replace(".nan", "nan")) if text[-1].isalpha() else float(text)
    except ValueError:  # an explicit tag before something else
        return text
    return text
