"""One document under the rules' eyes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unbroken.lint.finding import RULES, Finding
from unbroken.lint.reading import Manifest, Path


class Look:
    """Reads a document whatever its shape, and gathers findings."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.found: list[Finding] = []

    def get(self, *path: int | str) -> Any:
        """The value at ``path``, or None."""
        return self.manifest.get(*path)

    def each(self, *path: int | str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The mappings in the list at ``path``, with the path of each."""
        value = self.get(*path)
        for index, item in enumerate(value if isinstance(value, list) else []):
            if isinstance(item, dict):
                yield (*path, index), item

    def add(self, rule: str, path: Path, reason: str, mended: str) -> None:
        """Keep a finding of ``rule`` at ``path``."""
        shown = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
        kind, name = self.get("kind"), self.get("metadata", "name")
        self.found.append(
            Finding(rule, RULES[rule], self.manifest.file, str(kind), str(name or ""), shown,
                    self.manifest.line(path), reason, mended)
        )  # fmt: skip
