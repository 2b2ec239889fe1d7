"""A Python training under torchrun."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from unbroken.errors import ConfigError

_PYTHON = re.compile(r"python(\d+(\.\d+)*)?")
_LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")


def split_training(command: Sequence[str]) -> tuple[list[str], list[str]]:
    """The interpreter, and what torchrun is given to run.

    Torchrun starts the ranks with the same interpreter, but without its options: whoever needs one is told.

    Raises:
        ConfigError: it is neither ``python SCRIPT ...`` nor ``python -m MODULE ...``, or starts ranks itself (kind
            ``command``).
    """
    arguments = list(command[1:])
    while arguments[:1] == ["-u"]:  # torchrun says it itself
        del arguments[0]
    if not command or not _PYTHON.fullmatch(Path(command[0]).name):
        raise _refused(f"{command[0] if command else 'nothing'!r} is not Python")
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "-m") or arguments == ["-m"]:
        raise _refused(f"{arguments[0] if arguments else 'nothing'!r} after {command[0]!r} is neither a script nor -m")
    if arguments[0] == "-m" and arguments[1] in _LAUNCHERS:
        raise _refused(f"{arguments[1]} starts ranks itself")
    return [command[0]], arguments


def under_torchrun(command: Sequence[str], options: Sequence[str]) -> list[str]:
    """The training started by torchrun with these options.

    Raises:
        ConfigError: as :func:`split_training`.
    """
    python, training = split_training(command)
    # Starting again is the agent's business: torchrun would do it on the machine that is being taken away.
    return [*python, "-m", "torch.distributed.run", *options, "--max-restarts=0", *training]


def _refused(what: str) -> ConfigError:
    return ConfigError(
        f"{what}, and several ranks can only be started of a Python training", kind="command",
        hint="Write it as for one rank, without torchrun: python train.py ..., or python -m package.train ...",
    )  # fmt: skip
