"""What torchrun, where it started this rank below an agent, means by its signal, and does when its ranks have left."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from unbroken.link.messages import SOCKET_VARIABLE

TORCHRUN = "torchrun"
"""Source of a stop that torchrun asked for."""
PATIENCE = 25.0
"""Seconds: torchrun kills its ranks 30 s after its SIGTERM."""


@dataclass(frozen=True)
class Launcher:
    """Below an agent, a SIGTERM that the agent does not know of is torchrun's own: it ends its ranks to start others
    (a node came or left, or a rank has failed), and the machine stays.

    Args:
        signals: whether SIGTERM comes from torchrun.
        restarts: whether torchrun will start ranks again that have left (``--max-restarts``), so that a node whose
            ranks stop for the notice of another node need not be given up.
    """

    signals: bool = False
    restarts: bool = False

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Launcher:
        """As torchrun and the agent say in the environment."""
        if SOCKET_VARIABLE not in environment or "TORCHELASTIC_RUN_ID" not in environment:
            return cls()
        most, used = (_number(environment, f"TORCHELASTIC_{name}") for name in ("MAX_RESTARTS", "RESTART_COUNT"))
        return cls(signals=True, restarts=most > used)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else 0
