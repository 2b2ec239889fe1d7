from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from unbroken.agent.runtime import AgentStatus, read_status
from unbroken.journal import Journal
from unbroken.store import open_store

HERE = Path(__file__).parent
PATIENCE = 30.0


class AgentProcess:
    """A real agent with its command, in a process of its own. All output comes through one pipe."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._rest = b""
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)

    @property
    def _pipe(self) -> Any:
        return self.process.stdout

    def until(self, text: str) -> str:
        """The first line with ``text`` that was not yet waited for."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            while b"\n" in self._rest:
                line, self._rest = self._rest.split(b"\n", 1)
                self.lines.append(line.decode())
                if text in self.lines[-1]:
                    return self.lines[-1]
            if self._selector.select(deadline - time.monotonic()):
                data = os.read(self._pipe.fileno(), 65536)
                if not data:
                    break
                self._rest += data
        raise AssertionError(f"no line with {text!r} came:\n" + "\n".join(self.lines))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def status(self) -> AgentStatus:
        return read_status(self.folder)

    def wait(self) -> int:
        """The exit code, after all output was taken in."""
        deadline = time.monotonic() + PATIENCE
        while self._selector.select(max(0.0, deadline - time.monotonic())):
            data = os.read(self._pipe.fileno(), 65536)
            if not data:
                break
            self._rest += data
        code = self.process.wait(max(0.1, deadline - time.monotonic()))
        self.lines += self._rest.decode().splitlines()
        self._rest = b""
        return code

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def end(self) -> None:
        family = [self.process.pid]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(10)
        self._selector.close()
        self._pipe.close()


class Launcher:
    """Starts agents and ends them with the test."""

    def __init__(self, folder: Path, tmp_path: Path) -> None:
        self.folder = folder
        self.uri = str(tmp_path / "run")
        self.environment = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true", "PYTHONWARNINGS": "error"}
        self.started: list[AgentProcess] = []

    def trainer(self, **plan: Any) -> list[str]:
        """The command of the test trainer."""
        return [sys.executable, str(HERE / "trainer.py"), json.dumps({"uri": self.uri, **plan})]

    def agent(self, command: list[str], *, prefix: tuple[str, ...] = (), **options: Any) -> AgentProcess:
        """An agent under ``options``, with short waits unless they say otherwise."""
        given = {
            "first_backoff": 0.02, "longest_backoff": 0.05, "leftover_grace": 1.0, "store_patience": 5.0,
            "runtime_dir": str(self.folder), **options,
        }  # fmt: skip
        return self.start([*prefix, sys.executable, str(HERE / "launch.py"), json.dumps(given), *command])

    def start(self, command: list[str]) -> AgentProcess:
        agent = AgentProcess(command, self.environment, self.folder)
        self.started.append(agent)
        return agent

    def journal(self) -> Journal:
        return Journal.open(open_store(self.uri))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stager() -> ModuleType:
    """The trainer that stages, as a module: what it writes into its slots."""
    return load("stager")


@pytest.fixture(scope="session")
def ranks() -> ModuleType:
    """Nodes with several trainers each."""
    return load("rank_trainer")


@pytest.fixture
def make_node(tmp_path: Path, ranks: ModuleType) -> Iterator[Callable[..., Any]]:
    """Makes the nodes of one run, and ends them."""
    made: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="ub-") as folder:

        def make(**options: Any) -> Any:
            made.append(ranks.RankNode(Path(folder) / f"node{len(made)}", str(tmp_path / "run"), **options))
            return made[-1]

        yield make
        for node in made:
            node.close()


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    with tempfile.TemporaryDirectory(prefix="ub-") as folder:  # tmp_path may be too long for a socket
        launcher = Launcher(Path(folder), tmp_path)
        try:
            yield launcher
        finally:
            for agent in launcher.started:
                agent.end()
