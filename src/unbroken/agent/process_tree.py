"""The command's processes: starting, collecting and ending them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import psutil

from unbroken.agent.events import warnings_ignored
from unbroken.clock import Clock
from unbroken.errors import ConfigError

_PR_SET_CHILD_SUBREAPER = 36
_KILL_SECONDS = 5.0
"""For how long SIGKILLs are repeated: new processes may be forked while the others die."""
_POLL = 0.02


class Tree(Protocol):
    """A command that is watched, with everything that it started."""

    @property
    def pid(self) -> int:
        """The process whose end is the end of the command."""

    @property
    def returncode(self) -> int | None:
        """As :mod:`subprocess` gives it; None while it runs, and for a process that is not our child."""

    def ended(self) -> bool:
        """Whether the command itself has ended; collects dead processes on the way."""

    def terminate(self) -> None:
        """SIGTERM for the command itself, not for what it started."""

    def kill(self) -> list[int]:
        """SIGKILL for the whole tree; returns the pids that are still there seconds later."""

    def clear(self, grace: float) -> list[int]:
        """End what an ended command left behind: SIGTERM, ``grace`` seconds, SIGKILL. Returns the survivors' pids."""


def become_subreaper() -> None:
    """Make this process the parent of all orphans among its descendants.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


class ChildTree:
    """A command started here, in a session of its own, with this process as the parent of its orphans.

    Raises:
        ConfigError: the command cannot be executed.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], clock: Clock) -> None:
        become_subreaper()
        self._clock = clock
        try:
            with warnings_ignored():
                self._process = subprocess.Popen(list(command), env=dict(environment), start_new_session=True)
        except OSError as error:
            raise ConfigError(
                f"the command {command[0]!r} cannot be started: {os.strerror(error.errno or 0)}",
                kind="command",
                hint="Check its name, that it is on PATH, and that it is executable",
            ) from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def ended(self) -> bool:
        reap_orphans(spare=self.pid)
        return self._process.poll() is not None

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> list[int]:
        return _kill(self._living, self._clock)

    def clear(self, grace: float) -> list[int]:
        for process in self._living():
            _send(process, signal.SIGTERM)
        if self._living() and grace > 0:
            _gone_within(self._living, grace, self._clock)
        return self.kill()

    def _living(self) -> list[psutil.Process]:
        self.ended()
        own = os.getsid(0)
        return [process for process in _alive(psutil.Process().children(recursive=True)) if _session(process) != own]


class WatchedTree:
    """A process that someone else started; this process may be one of its descendants.

    Raises:
        ProcessLookupError: there is no such process.
    """

    def __init__(self, pid: int, clock: Clock) -> None:
        self._clock = clock
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def returncode(self) -> int | None:
        return None

    def ended(self) -> bool:
        return bool(self._poll.poll(0))

    def terminate(self) -> None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def kill(self) -> list[int]:
        return _kill(self._living, self._clock)

    def clear(self, grace: float) -> list[int]:  # noqa: ARG002 - what it leaves behind is not ours
        return []

    def close(self) -> None:
        """Let go of the process."""
        os.close(self._pidfd)

    def _living(self) -> list[psutil.Process]:
        if self.ended():
            return []
        with contextlib.suppress(psutil.Error):
            root, me = psutil.Process(self._pid), psutil.Process()
            spared = {me, *me.children(recursive=True)}
            return _alive([root, *(process for process in root.children(recursive=True) if process not in spared)])
        return []


def reap_orphans(spare: int) -> None:
    """Collect every dead child of this process but ``spare``, whose status its owner wants.

    Processes of our own session are left alone as well: a library in this process started them and waits for them.
    """
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
    except ChildProcessError:
        return
    own = os.getsid(0)
    for child in psutil.Process().children():
        if child.pid != spare and _is_zombie(child) and _session(child) != own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)


def _kill(living: Callable[[], list[psutil.Process]], clock: Clock) -> list[int]:
    deadline = clock.monotonic() + _KILL_SECONDS
    while processes := living():
        if clock.monotonic() >= deadline:
            return [process.pid for process in processes]
        for process in processes:
            _send(process, signal.SIGKILL)
        clock.sleep(_POLL)
    return []


def _gone_within(living: Callable[[], list[psutil.Process]], seconds: float, clock: Clock) -> bool:
    deadline = clock.monotonic() + seconds
    while clock.monotonic() < deadline:
        if not living():
            return True
        clock.sleep(_POLL)
    return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if not _is_zombie(process)]


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except OSError:
        return -1
