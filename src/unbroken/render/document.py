"""A document as it is handed out: data, and comments that say why a line stands there."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

Path: TypeAlias = tuple[str | int, ...]
_WIDTH = 100


@dataclass(frozen=True)
class Document:
    """One object of Kubernetes, one template of CloudFormation, or one JSON file for AWS.

    Args:
        name: of its file.
        data: what it says; the order of keys is that of the text.
        comments: what stands above the line of a key, by the path to it; above the first line by ``()``.
    """

    name: str
    data: Mapping[str, Any]
    comments: Mapping[Path, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The file; the same for the same data."""
        if self.name.endswith(".json"):
            return json.dumps(self.data, indent=2) + "\n"
        text = yaml.dump(dict(self.data), Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
        lines, above = text.splitlines(), dict[int, list[str]]()
        places = dict(_places(yaml.compose(text, yaml.SafeLoader), ()))
        for path, comment in self.comments.items():
            line, column = (0, 0) if not path else places[path]
            above.setdefault(line, []).extend(_wrapped(comment, column))
        return "".join(f"{row}\n" for at, line in enumerate(lines) for row in (*above.get(at, ()), line))


class Block(str):
    """A text of lines, which stands in YAML as it is."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Lists stand indented below their key, and nothing is referred to by an anchor."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)


_Dumper.add_representer(
    Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")
)


def _places(node: Any, path: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Line and column of each key and item, by path."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            yield here, (key.start_mark.line, key.start_mark.column)
            yield from _places(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            # The mark is that of what follows the dash.
            yield (*path, index), (item.start_mark.line, item.start_mark.column - 2)
            yield from _places(item, (*path, index))


def _wrapped(comment: str, column: int) -> list[str]:
    margin = " " * column + "# "
    return textwrap.wrap(
        comment, _WIDTH, initial_indent=margin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )
