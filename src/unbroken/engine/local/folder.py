"""A job's folder: its definition, how it stands, its logs, and the lock that says whether its supervisor lives."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from unbroken.engine.face import Place, State
from unbroken.errors import AccessError, DamagedError

_T = TypeVar("_T")
_STARTS = re.compile(r"agent-(\d+)(?:-node-(\d+))?\.log")


JOB_VARIABLE = "UNBROKEN_JOB"
"""Environment variable with the job's folder, in every process of the job: finds them when their supervisor died."""


class Definition(msgspec.Struct, frozen=True):
    """What was launched."""

    job: dict[str, Any]
    """As :func:`unbroken.job.store_job` has it."""
    directory: str
    """In which the command is started."""
    market: dict[str, Any] | None = None
    """The recorded world that it runs in; None for this machine as it is."""


class Written(msgspec.Struct, frozen=True):
    """What the supervisor says of the job, in ``standing.json``."""

    state: State
    reason: str = ""
    places: list[Place] = []
    told_to_stop: bool = False


class JobFolder:
    """The folder of the job ``name`` below ``root``."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.path = root / name

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "supervisor.log"

    def make(self) -> None:
        """Raises:
        AccessError: it cannot be made.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AccessError(
                f"the folder {self.path} for the job cannot be made ({error.strerror})", kind="folder",
                hint="Name another with XDG_STATE_HOME",
            ) from error  # fmt: skip

    def definition(self) -> Definition | None:
        """What was launched; None for nothing."""
        return _read(self.path / "job.json", Definition)

    def define(self, definition: Definition) -> None:
        self._replace("job.json", msgspec.json.format(msgspec.json.encode(definition)))

    def written(self) -> Written | None:
        """What the supervisor said last; None where none was ever there."""
        return _read(self.path / "standing.json", Written)

    def write(self, written: Written) -> None:
        self._replace("standing.json", msgspec.json.encode(written))

    def pid(self) -> int | None:
        """Of the supervisor that holds the lock; None where none lives."""
        try:
            with (self.path / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            text = (self.path / "lock").read_text()
            return int(text) if text.isdigit() else 0
        return None

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the lock with this process's pid in it; False where another holds it. It goes with the process."""
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield True

    def log_files(self, node: int) -> list[Path]:
        """Of one node, oldest start first: those of a launch are in a folder with its number."""
        found = [
            (int(folder.name), int(match[1]), path)
            for folder in self.logs.iterdir()
            if folder.name.isdigit()
            for path in folder.iterdir()
            if (match := _STARTS.fullmatch(path.name)) and int(match[2] or 0) == node
        ]
        return [path for *_, path in sorted(found)]

    def next_logs(self) -> Path:
        """A folder for the logs of one more launch."""
        numbers = [int(folder.name) for folder in self.logs.iterdir() if folder.name.isdigit()]
        return self.logs / str(max(numbers, default=0) + 1)

    def _replace(self, name: str, data: bytes) -> None:
        fresh = self.path / f".{name}"
        fresh.write_bytes(data)
        fresh.replace(self.path / name)


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise DamagedError(
            f"{path} is not what a supervisor wrote ({error})", kind="job-folder",
            hint="Remove the folder; the run itself is not in it",
        ) from error  # fmt: skip
