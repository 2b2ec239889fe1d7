"""One start of an agent as a subprocess, and everything that came out of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import psutil

from unbroken.agent.runtime import AgentStatus, read_status
from unbroken.clock import Clock
from unbroken.errors import NotFoundError, UnbrokenError

LAUNCH_VARIABLE = "UNBROKEN_LAUNCH"
"""Environment variable that marks every process of a launch. Children inherit it, so a process whose parents are dead
is still known to belong here, which no process group or tree can tell."""

_KILL_SECONDS = 10.0
_LOG_TAIL = 4000


class Launch:
    """A running ``unbroken run`` and its processes.

    Args:
        number: of the start, counted from 1.
        arguments: what follows ``python -m unbroken run``.
        environment: of the agent.
        log: file for what agent and command print.
        runtime_dir: where the agent puts its socket and status.
        clock: for ``started_at`` and ``ended_at``, wall-clock seconds.
        node: which one of those that were started together, counted from 0.
        pool: where it is thought to run; for those who look on.
    """

    def __init__(
        self,
        number: int,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: Path,
        runtime_dir: Path,
        clock: Clock,
        node: int = 0,
        pool: str = "",
    ) -> None:
        self.number = number
        self.node = node
        self.pool = pool
        self.log = log
        self.runtime_dir = runtime_dir
        self.ended_at: float | None = None
        self._clock = clock
        self._mark = secrets.token_hex(8)
        command = [sys.executable, "-m", "unbroken", "run", "--runtime-dir", str(runtime_dir), *arguments]
        with log.open("wb") as output:
            self.started_at = clock.now()
            # A session of its own: Ctrl-C in our terminal is ours to hear, not the agent's.
            self._process = subprocess.Popen(
                command,
                env={**environment, LAUNCH_VARIABLE: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def agent_pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As :mod:`subprocess` gives it: None while the agent runs, negative for a signal."""
        code = self._process.poll()
        if code is not None and self.ended_at is None:
            self.ended_at = self._clock.now()
        return code

    @property
    def seconds(self) -> float:
        """For how long the agent ran, or has been running."""
        return (self.ended_at or self._clock.now()) - self.started_at

    def status(self) -> AgentStatus | None:
        """What the agent says about itself, or None where it has not spoken yet or has left."""
        with contextlib.suppress(NotFoundError, msgspec.MsgspecError):
            return read_status(self.runtime_dir)
        return None

    def signal(self, number: int) -> bool:
        """Send a signal to the agent alone; False where it is already gone."""
        if self.returncode is not None:
            return False
        self._process.send_signal(number)
        return True

    def processes(self) -> list[psutil.Process]:
        """Every living process of this launch, the agent first."""
        found = [process for process in psutil.process_iter() if self._owns(process)]
        return sorted(found, key=lambda process: process.pid != self.agent_pid)

    def kill(self) -> None:
        """SIGKILL the agent and every process of this launch; returns when all are gone.

        Raises:
            UnbrokenError: a process would not die.
        """
        deadline = self._clock.monotonic() + _KILL_SECONDS
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()  # first, so that it cannot journal the death of its child
        while living := self.processes():
            if self._clock.monotonic() > deadline:
                pids = ", ".join(str(process.pid) for process in living)
                raise UnbrokenError(f"processes {pids} of launch {self.number} do not die", kind="survivor")
            for process in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._clock.sleep(0.01)
        self._process.wait(_KILL_SECONDS)
        _ = self.returncode  # notes the end

    def log_tail(self) -> str:
        """The end of what agent and command printed."""
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL))
            return file.read().decode("utf-8", errors="replace").strip()

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(LAUNCH_VARIABLE) == self._mark
        except (psutil.Error, OSError):
            return False


class Watcher(Protocol):
    """Looks on, and may interrupt. Called from the thread that runs the engine."""

    def started(self, launch: Launch) -> None:
        """An agent was started."""

    def watch(self, launch: Launch) -> None:
        """It runs; called about a hundred times a second."""

    def ended(self, launch: Launch) -> None:
        """It is gone, with all of its processes."""
