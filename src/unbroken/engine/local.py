"""The scheduler of one machine: starts a run's agent again and again, by the exit contract."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unbroken.clock import SYSTEM_CLOCK, Clock, format_duration
from unbroken.engine.launch import Launch
from unbroken.errors import EXIT_FINISHED, EXIT_INTERRUPTED, AccessError, ChildError

_LOOK_SECONDS = 0.01


class Watcher(Protocol):
    """Looks on, and may interrupt. Called from the thread that runs the engine."""

    def started(self, launch: Launch) -> None:
        """An agent was started."""

    def watch(self, launch: Launch) -> None:
        """It runs; called about a hundred times a second."""

    def ended(self, launch: Launch) -> None:
        """It is gone, with all of its processes."""


@dataclass(frozen=True)
class AgentSettings:
    """What every agent of a run is told; the fields are options of ``unbroken run``. Empty ones are left to it."""

    uri: str = ""
    every: str = ""
    grace: str = ""
    pool: str = ""
    price: float | None = None
    currency: str = ""
    max_restarts: int | None = None
    no_progress_limit: int | None = None

    def arguments(self) -> list[str]:
        """As arguments of the command."""
        given = {
            "--uri": self.uri,
            "--every": self.every,
            "--grace": self.grace,
            "--pool": self.pool,
            "--price": self.price,
            "--currency": self.currency,
            "--max-restarts": self.max_restarts,
            "--no-progress-limit": self.no_progress_limit,
        }
        return [part for name, value in given.items() if value not in ("", None) for part in (name, str(value))]


class LocalEngine:
    """Runs a command under agents on this machine until its run is finished.

    It owns every process that it starts: when :meth:`run` returns or raises, whatever the reason, none of them lives.

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
        self._command = list(command)
        self._settings = settings
        self._logs = logs
        self._prefix = prefix
        self._environment = {**os.environ, **(environment or {})}
        self._max_starts = max_starts
        self._timeout = timeout
        self._clock = clock

    def run(self, watcher: Watcher) -> list[Launch]:
        """Start agents until one says that the run is finished.

        Returns:
            the launches, all ended, in order; the last one left with 0.

        Raises:
            AccessError: the folder for the logs cannot be made.
            ChildError: an agent left with a code that means "do not start again" (kind ``exit``), or there were too
                many starts (kind ``starts``), or the time is up (kind ``timeout``).
        """
        self._make_logs()
        deadline = self._clock.monotonic() + self._timeout
        launches: list[Launch] = []
        # A short path: it must fit into the address of a Unix socket.
        with tempfile.TemporaryDirectory(prefix="unbroken-") as folder:
            while True:
                launch = self._launch(len(launches) + 1, Path(folder), watcher, deadline)
                launches.append(launch)
                if launch.returncode == EXIT_FINISHED:
                    return launches
                self._check_again(launch)

    def _make_logs(self) -> None:
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AccessError(
                f"the folder {self._logs} for logs cannot be made ({error.strerror})", kind="folder",
                hint="Work in a folder that this user may write",
            ) from error  # fmt: skip

    def _launch(self, number: int, folder: Path, watcher: Watcher, deadline: float) -> Launch:
        launch = Launch(
            number,
            [*self._settings.arguments(), "--", *self._command],
            self._environment,
            log=self._logs / f"{self._prefix}-{number}.log",
            runtime_dir=folder / str(number),
            clock=self._clock,
        )
        try:
            watcher.started(launch)
            while launch.returncode is None:
                watcher.watch(launch)
                if self._clock.monotonic() > deadline:
                    raise ChildError(
                        f"{self._name} was not finished after {format_duration(self._timeout)}",
                        returncode=-9, kind="timeout", hint=f"Allow more time with --timeout. {self._seen(launch)}",
                    )  # fmt: skip
                self._clock.sleep(_LOOK_SECONDS)
        finally:
            launch.kill()
        watcher.ended(launch)
        return launch

    def _check_again(self, launch: Launch) -> None:
        """Return where the contract allows another start."""
        code = launch.returncode or 0
        if code != EXIT_INTERRUPTED and code > 0:
            raise ChildError(f"{self._name} ended with {code}", returncode=code, kind="exit", hint=self._seen(launch))
        if launch.number >= self._max_starts:
            raise ChildError(
                f"{self._name} is not finished after {launch.number} starts", returncode=code, kind="starts",
                hint=self._seen(launch),
            )  # fmt: skip

    @property
    def _name(self) -> str:
        return f"`{shlex.join(self._command)}`"

    def _seen(self, launch: Launch) -> str:
        tail = launch.log_tail()
        return f"It printed (all of it in {launch.log}):\n{tail}" if tail else f"It printed nothing ({launch.log})"
