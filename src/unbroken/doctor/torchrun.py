"""Whether the interpreter of the training has Unbroken, torch, and a torchrun with the options that are used."""

from __future__ import annotations

import re
from collections.abc import Sequence

from unbroken.doctor.finding import Finding, failure, note, sound, warning
from unbroken.doctor.interpreter import NoInterpreterError, Versions, torchrun_help, versions
from unbroken.doctor.place import Place
from unbroken.errors import ConfigError
from unbroken.job.torchrun import split_training
from unbroken.version import __version__

_OLDEST = (2, 4)
"""Of torch, as the extra ``unbroken[torch]`` demands it."""
_OPTIONS = (
    "--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--rdzv-conf", "--local-addr",
    "--max-restarts",
)  # fmt: skip
"""What the engines give to torchrun."""
_TODO = "Install it for that interpreter: pip install 'unbroken[torch]'"


def check_interpreter(place: Place) -> list[Finding]:
    """Ask the interpreter which versions it has, and torchrun which options it takes."""
    try:
        python, _ = split_training([*place.argv, *(["-m", "train"] if len(place.argv) == 1 else [])])
    except ConfigError as error:
        return [note(f"the interpreter was not asked: {error.message}", todo="Name the interpreter in the command")]
    try:
        found = versions(python, place.environment)
    except NoInterpreterError as error:
        return [failure(str(error), "The training cannot start", "Install it, or name another one in the command")]
    findings = [_unbroken(python[0], found), *_torch(python[0], found)]
    if found.torch is not None and findings[-1].severity != "error":
        findings += _torchrun(python, found.torch, place)
    return findings


def _unbroken(python: str, found: Versions) -> Finding:
    if found.unbroken is None:
        return failure(f"{python} ({found.python}) has no unbroken", "The training cannot import it", _TODO)
    text = f"{python} ({found.python}) has unbroken {found.unbroken}"
    if found.unbroken == __version__:
        return sound(text)
    why = "An agent and a trainer of two versions may not understand each other"
    return warning(f"{text}, and this is {__version__}", why, f"pip install unbroken=={__version__}")


def _torch(python: str, found: Versions) -> list[Finding]:
    if found.torch is None:
        return [failure(f"{python} ({found.python}) has no torch", "Trainings with Unbroken are PyTorch's", _TODO)]
    numbers = tuple(map(int, re.findall(r"\d+", found.torch)[:2]))
    if numbers >= _OLDEST:
        return []
    oldest = ".".join(map(str, _OLDEST))
    return [failure(f"{python} has torch {found.torch}", f"Unbroken needs torch {oldest} or newer", _TODO)]


def _torchrun(python: Sequence[str], torch: str, place: Place) -> list[Finding]:
    several = place.ranks > 1
    why = "Several ranks are started by it" if several else "Several ranks would be started by it; this job has one"
    try:
        missing = missing_options(torchrun_help(python, place.environment))
    except NoInterpreterError as error:
        found, todo = f"torchrun of torch {torch} does not start: {error}", "Install torch again for that interpreter"
        return [failure(found, why, todo) if several else note(found, why, todo)]
    if not missing:
        return [sound(f"torchrun of torch {torch} takes all the options that are used")]
    found, todo = f"torchrun of torch {torch} knows no {', '.join(missing)}", "Use torch 2.4 or newer"
    return [failure(found, why, todo) if several else note(found, why, todo)]


def missing_options(text: str) -> list[str]:
    """Those options that torchrun's help does not name."""
    known = {word.replace("_", "-") for word in re.findall(r"--[a-z][a-z_-]*", text)}
    return [option for option in _OPTIONS if option not in known]
