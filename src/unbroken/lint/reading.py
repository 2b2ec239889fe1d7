"""YAML documents as plain values, with the line of each; no object is ever built from a tag.

Unlike a job file, a manifest may have aliases and merge keys. What they unfold to is bounded.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from unbroken.errors import ConfigError

Path = tuple[int | str, ...]
MAX_CHARACTERS = 2_000_000
MAX_VALUES = 100_000
MAX_DEPTH = 60


class Manifest:
    """One document: its value, and the line (from 1) of each thing in it."""

    def __init__(self, name: str) -> None:
        self.file = name
        self.value: Any = None
        self.lines: dict[Path, int] = {}
        self._values = 0

    def get(self, *path: int | str) -> Any:
        """The value at ``path``, or None."""
        found = self.value
        for step in path:
            if isinstance(step, int):
                found = found[step] if isinstance(found, list) and 0 <= step < len(found) else None
            else:
                found = found.get(step) if isinstance(found, dict) else None
        return found

    def line(self, path: Path) -> int:
        """Of the thing at ``path``, or of the nearest above it."""
        return next(self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines)

    def read(self, node: yaml.Node, path: Path = ()) -> Any:
        """Unfold a composed node.

        Raises:
            ConfigError: a key twice, a key that is no scalar, too deep, or too much.
        """
        self._values += 1
        if len(path) > MAX_DEPTH or self._values > MAX_VALUES:
            raise _bad(self.file, node.start_mark.line + 1 if node.start_mark else 1, "too deep or too large")
        if node.start_mark is not None:
            self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _bad(self.file, line, "a key must be a word")
            if key.tag == "tag:yaml.org,2002:merge":
                for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    unfolded = self.read(part, path)
                    if not isinstance(unfolded, dict):
                        raise _bad(self.file, line, "only a mapping can be merged")
                    merged = {**unfolded, **merged}
                continue
            if key.value in found:
                raise _bad(self.file, line, f"the key {key.value!r} is given twice")
            self.lines[*path, key.value] = line
            found[key.value] = self.read(value, (*path, key.value))
        return {**merged, **found}


def read_manifests(text: str, name: str) -> list[Manifest]:
    """All documents of ``text`` that are not empty.

    Raises:
        ConfigError: it is not YAML (kind ``yaml``); the message names the file and the line.
    """
    if len(text) > MAX_CHARACTERS:
        raise _bad(name, 1, f"longer than {MAX_CHARACTERS} characters")
    manifests = []
    try:
        for node in yaml.compose_all(text, yaml.SafeLoader):
            manifest = Manifest(name)
            manifest.value = manifest.read(node)
            if manifest.value is not None:
                manifests.append(manifest)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _bad(name, mark.line + 1 if mark else 1, str(error.problem)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise _bad(name, line, f"the character {error.character!r} is not allowed") from error
    except RecursionError as error:
        raise _bad(name, 1, "nested too deeply") from error
    return manifests


def _bad(name: str, line: int, what: str) -> ConfigError:
    return ConfigError(f"{name}:{line}: cannot be read as YAML: {what}", kind="yaml")


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    if node.tag.endswith(":null"):
        return None
    if node.tag.endswith(":bool"):
        return text.lower() in ("true", "yes", "on")
    if node.tag.endswith(":int") and re.fullmatch(r"[-+]?[0-9]{1,18}", text):
        return int(text)
    return text
