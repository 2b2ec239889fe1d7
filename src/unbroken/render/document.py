"""A rendered document, as plain values with reasons."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from unbroken.render.yaml_text import plain, yaml_text


@dataclass(frozen=True)
class Document:
    """One document and the file that it belongs into."""

    file: str
    """Name of its file; ``.json`` for what is not applied to a cluster."""
    body: dict[str, Any]
    """Its fields; some may be a :class:`~unbroken.render.yaml_text.Why`."""
    about: str = ""
    """What it is for and how it is used: a comment above it."""

    @property
    def in_cluster(self) -> bool:
        """Whether it is a Kubernetes object."""
        return not self.file.endswith(".json")

    @property
    def value(self) -> dict[str, Any]:
        """The fields alone, without reasons."""
        body: dict[str, Any] = plain(self.body)
        return body

    @property
    def text(self) -> str:
        """As YAML with reasons as comments, or as JSON, which has none; ends with a line break."""
        if not self.in_cluster:
            return json.dumps(self.value, indent=2) + "\n"
        return yaml_text(self.body, self.about)
