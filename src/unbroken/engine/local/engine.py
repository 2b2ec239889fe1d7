"""Launches, watches and stops the supervisors of this user's jobs on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from unbroken.clock import SYSTEM_CLOCK, Clock, format_duration
from unbroken.engine.face import Standing, State
from unbroken.engine.local.folder import JOB_VARIABLE, Definition, JobFolder
from unbroken.errors import ConfigError, NotFoundError, UnbrokenError
from unbroken.job import Job, store_job

_LOOK_SECONDS = 0.05
_START_SECONDS = 60.0
_AT_ONCE = 1 << 16


def jobs_root() -> Path:
    """Below ``$XDG_STATE_HOME``, by default ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state else Path.home() / ".local" / "state") / "unbroken" / "jobs"


class LocalEngine:
    """The face of :class:`unbroken.engine.face.Engine` over processes.

    Args:
        root: folder of the jobs' folders.
    """

    def __init__(self, root: Path | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._root = jobs_root() if root is None else root
        self._clock = clock

    def launch(self, job: Job, *, replace: bool = False, market: dict[str, Any] | None = None) -> Standing:
        """As the face says; with ``market`` in a recorded one (:class:`unbroken.engine.local.market.Market`)."""
        folder = JobFolder(self._root, job.name)
        wanted = Definition(store_job(job), str(Path.cwd()), market)
        known = folder.definition()
        if known is not None and known != wanted and not replace:
            raise ConfigError(
                f"the job {job.name} was launched otherwise: {_difference(known, wanted)}", kind="changed",
                hint="Say --replace to stop it and go on with this, or give it another name",
            )  # fmt: skip
        if folder.pid() is not None:
            if known == wanted:
                return self.status(job.name)
            self.stop(job.name, timeout=_START_SECONDS + (job.grace or 30.0))
        written = folder.written()
        if known == wanted and written is not None and written.state == State.FINISHED:
            return self.status(job.name)
        self._end_orphans(folder, _START_SECONDS)
        folder.make()
        folder.define(wanted)
        self._start(folder)
        return self.status(job.name)

    def status(self, name: str) -> Standing:
        folder = JobFolder(self._root, name)
        written = folder.written() if folder.definition() is not None else None
        if written is None:
            return Standing("local", name, str(folder.path), State.ABSENT)
        state, reason = written.state, written.reason
        if state in (State.WAITING, State.RUNNING, State.STOPPING):
            if folder.pid() is None:
                state, reason = State.FAILED, "its supervisor died without a word; launch it again and it goes on"
            elif written.told_to_stop:
                state = State.STOPPING
        return Standing("local", name, str(folder.path), state, reason, written.places)

    def logs(self, name: str, *, node: int = 0, follow: bool = False) -> Iterator[str]:
        folder = self._known(name)
        if not follow and not folder.log_files(node):
            raise NotFoundError(f"the job {name} has no log of node {node}", kind="logs", hint="Has it been started?")
        return self._lines(folder, node, follow=follow)

    def stop(self, name: str, *, timeout: float) -> Standing:
        folder = self._known(name)
        deadline = self._clock.monotonic() + timeout
        while (pid := folder.pid()) is not None:
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if self._clock.monotonic() > deadline:
                raise UnbrokenError(
                    f"the job {name} still runs after {format_duration(timeout)}; it was told to stop", kind="timeout",
                    hint="Wait longer with --timeout; the training saves first",
                )  # fmt: skip
            self._clock.sleep(_LOOK_SECONDS)
        self._end_orphans(folder, max(0.0, deadline - self._clock.monotonic()))
        written = folder.written()
        if written is not None and written.state in (State.WAITING, State.RUNNING, State.STOPPING):
            folder.write(msgspec.structs.replace(written, state=State.STOPPED, told_to_stop=True))
        return self.status(name)

    def _known(self, name: str) -> JobFolder:
        folder = JobFolder(self._root, name)
        if folder.definition() is None:
            raise NotFoundError(
                f"there is no job {name} on this machine ({folder.path})", kind="job", hint="Launch it first"
            )
        return folder

    def _start(self, folder: JobFolder) -> None:
        command = [sys.executable, "-m", "unbroken.engine.local.supervisor", str(folder.path)]
        before = folder.path / "standing.json"
        before_at = before.stat().st_mtime_ns if before.exists() else 0
        with folder.supervisor_log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = self._clock.monotonic() + _START_SECONDS
        while not (before.exists() and before.stat().st_mtime_ns != before_at):
            if process.poll() is not None or self._clock.monotonic() > deadline:
                process.kill()
                process.wait()
                tail = folder.supervisor_log.read_text(errors="replace")[-2000:].strip()
                raise UnbrokenError(f"the supervisor of {folder.name} did not start", kind="engine", hint=tail)
            self._clock.sleep(_LOOK_SECONDS)
        # It goes on without us; where we live longer, its end is ours to collect.
        process.returncode = process.poll() if process.poll() is not None else 0

    def _end_orphans(self, folder: JobFolder, timeout: float) -> None:
        """End what a supervisor left that was killed: politely first, so that the training saves."""
        if not folder.path.exists():
            return
        left = [process for process in psutil.process_iter() if _belongs(process, folder)]
        for process in left:
            with suppress(psutil.Error):
                if "unbroken" in process.cmdline():
                    process.terminate()
        _, left = psutil.wait_procs(left, timeout=timeout)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_START_SECONDS)

    def _lines(self, folder: JobFolder, node: int, *, follow: bool) -> Iterator[str]:
        done: set[Path] = set()
        while True:
            over = folder.pid() is None  # asked before reading: what was printed until then is read below
            files = [path for path in folder.log_files(node) if path not in done]
            for index, path in enumerate(files):
                last = index == len(files) - 1
                yield from self._file(folder, node, path, follow=follow and last and not over)
                done.add(path)
            if not follow or over:
                return
            self._clock.sleep(_LOOK_SECONDS)

    def _file(self, folder: JobFolder, node: int, path: Path, *, follow: bool) -> Iterator[str]:
        """Lines of one start; with ``follow`` until a newer one is there or the supervisor has gone."""
        rest = ""
        with path.open(encoding="utf-8", errors="replace") as file:
            while True:
                over = not follow or folder.pid() is None or folder.log_files(node)[-1] != path
                while text := file.read(_AT_ONCE):
                    *lines, rest = (rest + text).split("\n")
                    yield from lines
                if over:
                    break
                self._clock.sleep(_LOOK_SECONDS)
        if rest:
            yield rest


def _belongs(process: psutil.Process, folder: JobFolder) -> bool:
    try:
        return process.environ().get(JOB_VARIABLE) == str(folder.path)
    except (psutil.Error, OSError):
        return False


def _difference(known: Definition, wanted: Definition) -> str:
    """The fields that differ, in words."""
    changed = [
        f"{name}: {known.job.get(name)!r}, now {wanted.job.get(name)!r}"
        for name in sorted({*known.job, *wanted.job})
        if known.job.get(name) != wanted.job.get(name)
    ]
    if known.directory != wanted.directory:
        changed.append(f"directory: {known.directory}, now {wanted.directory}")
    if known.market != wanted.market:
        changed.append(f"market: {known.market!r}, now {wanted.market!r}")
    return "; ".join(changed)
