"""The scheduler of one machine: starts a run's agent again and again, by the exit contract."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.engine.gang import LocalGang, Node
from unbroken.engine.settings import AgentSettings


class LocalEngine(LocalGang):
    """Runs a command under agents on this machine until its run is finished: a gang of one node.

    Args:
        command: the training.
        settings: for the agents.
        logs: folder for what each launch prints, ``PREFIX-1.log`` and so on; made where it is missing.
        prefix: of the logs' names.
        environment: added to this process's own.
        max_starts: how many agents may be started in all.
        timeout: seconds for all of it.
    """

    def __init__(
        self,
        command: Sequence[str],
        settings: AgentSettings,
        *,
        logs: Path,
        prefix: str = "agent",
        environment: Mapping[str, str] | None = None,
        max_starts: int = 100,
        timeout: float = float("inf"),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        node = Node(command, environment or {})
        super().__init__(
            lambda: [node], settings, name=shlex.join(command), logs=logs, prefix=prefix, max_starts=max_starts,
            timeout=timeout, clock=clock,
        )  # fmt: skip
