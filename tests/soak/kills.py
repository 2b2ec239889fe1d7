"""What a trial does, who is killed when, and the ledger in which its processes say how far they came.

Trainer, agent and the tests share this file. Kills come one after another: the next one is armed when the one before
has struck.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

PLAN_VARIABLE = "UNBROKEN_TEST_PLAN"
"""Path of the plan; also what marks the processes of a trial."""


class Kill(msgspec.Struct, frozen=True):
    """One SIGKILL, or two at the same moment."""

    role: str
    """In which process the moment is met: ``trainer`` or ``agent``."""
    point: str
    """The call that makes the moment; see ``train.py`` and ``agent.py``."""
    before: bool
    """Whether it strikes as the call begins, or as it returns."""
    nth: int
    """At which of these calls, counted in one process from the kill before."""
    delay: float
    """Seconds after that moment."""
    victims: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    """One trial."""

    folder: str
    uri: str
    supervised: bool
    """Under ``unbroken run``; else the trainer starts its agent itself."""
    restarts_itself: bool
    """Whether the command starts its trainer again, as torchrun does; else it ends with it."""
    impatient: bool
    """Whether the command is started again while what a killed ``unbroken run`` left is still training."""
    pace: float
    """Seconds that a step takes beside its arithmetic."""
    away: float
    """Seconds that the store takes longer for each checkpoint."""
    kills: tuple[Kill, ...]


def processes(plan_path: Path) -> list[int]:
    """The other processes of the trial with this plan that live."""
    mark = f"{PLAN_VARIABLE}={plan_path}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # gone meanwhile, or somebody else's
                continue
    return found


def read_plan() -> Plan:
    """The plan of the trial to which this process belongs."""
    return msgspec.json.decode(Path(os.environ[PLAN_VARIABLE]).read_bytes(), type=Plan)


class Ledger:
    """Lines that are there once :meth:`add` has returned: what a process wrote outlives its SIGKILL."""

    def __init__(self, plan: Plan) -> None:
        self._path = Path(plan.folder, "ledger")
        self._fired = Path(plan.folder, "fired")
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def add(self, what: str, **more: Any) -> None:
        """Append a line, whole."""
        os.write(
            self._file,
            json.dumps({"what": what, "pid": os.getpid(), "at": round(time.time(), 2), **more}).encode() + b"\n",
        )

    def lines(self) -> list[dict[str, Any]]:
        """All lines, oldest first."""
        return [json.loads(line) for line in self._path.read_bytes().splitlines()]

    def strikes(self) -> int:
        """How many kills have struck."""
        return self._fired.stat().st_size if self._fired.exists() else 0

    def strike(self) -> None:
        """Count one more."""
        with self._fired.open("ab") as file:
            file.write(b".")

    def close(self) -> None:
        os.close(self._file)


class Moments:
    """Waits in one process for the moment of the kill that is armed.

    Args:
        others: process ids of the other role, as far as they are known now.
    """

    def __init__(self, plan: Plan, ledger: Ledger, role: str, others: Callable[[], list[int]]) -> None:
        self._plan = plan
        self._ledger = ledger
        self._role = role
        self._others = others
        self._lock = threading.Lock()
        self._index = -1
        self._count = 0

    def around(self, owner: Any, name: str, point: str, then: Callable[..., None] = lambda *_: None) -> None:
        """Make a moment before and after each call of ``owner.name``; ``then`` is told of its end first."""
        real = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self._reach(point, before=True)
            result = real(*arguments, **named)
            then(*arguments)
            self._reach(point, before=False)
            return result

        setattr(owner, name, call)

    def _reach(self, point: str, *, before: bool) -> None:
        with self._lock:
            index = self._ledger.strikes()
            if index >= len(self._plan.kills):
                return
            kill = self._plan.kills[index]
            if (kill.role, kill.point, kill.before) != (self._role, point, before):
                return
            if index != self._index:
                self._index, self._count = index, 0
            self._count += 1
            if self._count != kill.nth:
                return
        if kill.delay:
            timer = threading.Timer(kill.delay, self._strike, (kill,))
            timer.daemon = True
            timer.start()
        else:
            self._strike(kill)

    def _strike(self, kill: Kill) -> None:
        other = {"trainer": "agent", "agent": "trainer"}[self._role]
        others = self._others() if other in kill.victims else []
        victims = {other: others, self._role: [os.getpid()] if self._role in kill.victims else []}
        self._ledger.add("kill", victims=victims, point=kill.point)
        self._ledger.strike()
        for pid in [*others, *victims[self._role]]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
