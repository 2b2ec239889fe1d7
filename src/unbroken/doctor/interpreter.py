"""Asks the interpreter that will run the training, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_QUESTION = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": "%d.%d.%d" % sys.version_info[:3]}
for name in ("unbroken", "torch"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""
VERSION_SECONDS = 20.0
HELP_SECONDS = 60.0
"""It imports torch, which may take long from a cold disk."""
_LONGEST_LINE = 200


class NoInterpreterError(Exception):
    """It did not answer. The message says what happened."""


@dataclass(frozen=True)
class Versions:
    """What an interpreter has; None for what is not installed."""

    python: str
    unbroken: str | None
    torch: str | None


def versions(python: Sequence[str], environment: Mapping[str, str]) -> Versions:
    """What is installed for this interpreter; imports none of it.

    Raises:
        NoInterpreterError: it cannot be started, or is no Python.
    """
    output = ask([*python, "-c", _QUESTION], environment, VERSION_SECONDS)
    try:
        found: dict[str, Any] = json.loads(output.strip().rpartition("\n")[2])
        return Versions(str(found["python"]), found["unbroken"], found["torch"])
    except (ValueError, KeyError, TypeError) as error:
        raise NoInterpreterError(f"{python[0]} does not answer as Python does") from error


def torchrun_help(python: Sequence[str], environment: Mapping[str, str]) -> str:
    """What torchrun says of its options.

    Raises:
        NoInterpreterError: it did not start.
    """
    return ask([*python, "-m", "torch.distributed.run", "--help"], environment, HELP_SECONDS)


def ask(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> str:
    """What a command writes to its standard output. Where it takes too long, it is killed with all that it started.

    Raises:
        NoInterpreterError: it cannot be started, fails, or takes longer than ``seconds``.
    """
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **environment}, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise NoInterpreterError(f"{command[0]} cannot be started: {error}") from error
    with process:
        try:
            output, problems = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)  # it was not waited for yet, so the number is still its own
            raise NoInterpreterError(f"{command[0]} took longer than {seconds:g} s to answer") from error
    if process.returncode != 0:
        last = problems.strip().rpartition("\n")[2][:_LONGEST_LINE]
        raise NoInterpreterError(f"{command[0]} ended with status {process.returncode}: {last or 'nothing was said'}")
    return output
