"""The agent's runtime folder: its socket, and ``agent.json``, which tells other programs whom it supervises."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from unbroken.errors import ConfigError, NotFoundError

SOCKET = "agent.sock"
STATUS = "agent.json"
_LONGEST_SOCKET = 107
"""Bytes that fit into ``sun_path`` of a Unix socket's address, with the final zero left out."""


class TrainerStatus(msgspec.Struct, frozen=True):
    """A trainer that is connected to the agent."""

    rank: int
    pid: int
    progress: str
    """Path of its progress page, or ""."""


class AgentStatus(msgspec.Struct, frozen=True):
    """What ``agent.json`` says."""

    agent_pid: int
    child_pid: int
    """0 while no command runs."""
    uri: str = ""
    attempt: int = 0
    """0 before the first trainer was welcomed."""
    trainers: list[TrainerStatus] = []
    """By rank."""
    world_size: int = 1
    """Ranks of the attempt, on all nodes together."""


class RuntimeFolder:
    """The folder at ``path``, made where it is missing; None for a temporary one that :meth:`close` removes.

    Args:
        say: told once where ``agent.json`` cannot be written.

    Raises:
        ConfigError: the path is too long for a Unix socket, or cannot be made.
    """

    def __init__(self, path: Path | None = None, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self._failed = False
        self._temporary = path is None
        self._written: AgentStatus | None = None
        try:
            self.path = Path(tempfile.mkdtemp(prefix="unbroken-")) if path is None else path.absolute()
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the runtime folder {path} cannot be made: {error}", kind="runtime-dir") from error
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            raise ConfigError(
                f"{self.socket} is too long for a Unix socket ({_LONGEST_SOCKET} bytes at most)",
                kind="runtime-dir",
                hint="Name a shorter folder with --runtime-dir, or a shorter TMPDIR",
            )

    @property
    def socket(self) -> Path:
        """Where the agent listens."""
        return self.path / SOCKET

    def write(self, status: AgentStatus) -> None:
        """Replace ``agent.json``, whole or not at all, if it says something else.

        It is a courtesy to other programs: a full or vanished folder is said, and is no reason to stop training.
        """
        if status == self._written:
            return
        fresh = self.path / f".{STATUS}"
        try:
            fresh.write_bytes(msgspec.json.encode(status))
            fresh.replace(self.path / STATUS)
            self._written = status
        except OSError as error:
            if not self._failed:
                self._say(f"{self.path / STATUS} cannot be written, training goes on: {error}")
            self._failed = True

    def close(self) -> None:
        """Remove the socket and ``agent.json``, and the folder where it was temporary."""
        if self._temporary:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for name in (SOCKET, STATUS):
            (self.path / name).unlink(missing_ok=True)


def read_status(folder: Path) -> AgentStatus:
    """What the agent with this runtime folder says about itself.

    Raises:
        NotFoundError: no agent has written there, or it has left.
    """
    try:
        data = (folder / STATUS).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"no agent is at {folder}", kind="agent") from error
    return msgspec.json.decode(data, type=AgentStatus)
