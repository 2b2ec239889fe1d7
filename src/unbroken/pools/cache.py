"""What sources said, kept for a while below ``$XDG_CACHE_HOME/unbroken/pools``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from unbroken.clock import Clock
from unbroken.pools.facts import Reading


def cache_folder() -> Path:
    """``~/.cache`` where the environment names no other."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if named else Path.home() / ".cache") / "unbroken" / "pools"


class Cache:
    """Answers by question.

    Args:
        max_age: seconds after which a question is asked again.
    """

    def __init__(self, folder: Path, max_age: float, clock: Clock) -> None:
        self._folder, self._max_age, self._clock = folder, max_age, clock

    def get(self, question: str, ask: Callable[[], Reading]) -> Reading:
        """The kept answer, if it is young enough, or that of ``ask``, which is kept where it has no problems.

        A cache that cannot be read or written is passed over.
        """
        path = self._folder / f"{hashlib.sha256(question.encode()).hexdigest()[:24]}.json"
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=Reading)
            if 0.0 <= self._clock.now() - kept.at <= self._max_age:
                return kept
        except (OSError, msgspec.MsgspecError):
            pass
        fresh = ask()
        if not fresh.problems:
            self._keep(path, fresh)
        return fresh

    def _keep(self, path: Path, reading: Reading) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(msgspec.json.encode(reading))
            part.replace(path)
        except OSError:
            return
