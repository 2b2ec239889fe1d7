"""What a way of saving must offer to be measured, and where it saves to."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from servers import BUCKET, s3_client


@dataclass(frozen=True)
class Place:
    """An empty store: a folder, or (``folder`` is "") the bucket of the server that the environment names."""

    folder: str
    signed: bool = False
    """Whether the bodies of puts are signed."""

    @property
    def uri(self) -> str:
        """Where a run of Unbroken goes."""
        return str(Path(self.folder, "run")) if self.folder else f"s3://{BUCKET}/run"

    def stored(self) -> int:
        """Bytes of everything in the store."""
        if self.folder:
            return sum(path.lstat().st_size for path in Path(self.folder).rglob("*") if path.is_file())
        with contextlib.closing(s3_client(dict(os.environ))) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
            return sum(found["Size"] for page in pages for found in page.get("Contents", []))


class Saving(Protocol):
    """One way of saving. Made with the place and the training, used by one process for one role."""

    def open(self, every: int) -> None:
        """Get ready to save at each multiple of ``every`` steps; the training stands at step 0 and is warm."""

    def boundary(self, step: int, *, due: bool) -> bool:
        """Between two steps, after ``step`` of them: begin a save if one is due and none is under way.

        Returns:
            whether one was begun. The time of this call is the stall.
        """

    def close(self) -> list[float]:
        """Let the saves finish; returns the wall-clock times at which they were durable, in order."""

    def restore(self) -> dict[str, Any]:
        """Put the newest checkpoint into the training; returns ``restore`` and ``open_and_restore`` in seconds."""
