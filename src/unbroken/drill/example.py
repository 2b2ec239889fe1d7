"""The training that ``unbroken drill`` uses when it is given none: ``examples/gpt/train.py``.

There is one copy of its text. The wheel carries it beside this module; a checkout has it in ``examples/``.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from unbroken.errors import ConfigError

_HERE = Path(__file__)
_PLACES = (_HERE.with_name("gpt") / "train.py", _HERE.parents[3] / "examples" / "gpt" / "train.py")

EVERY = "20"
"""Its cadence in the drill: every 20 of its 300 steps."""


def example_command() -> list[str]:
    """The command that trains the example.

    Raises:
        ConfigError: PyTorch is not installed, or the installation lacks the script.
    """
    if find_spec("torch") is None:
        raise ConfigError(
            "the drill's own training needs PyTorch, which is not installed", kind="extra",
            hint="Install it with: pip install 'unbroken[torch]'",
        )  # fmt: skip
    for place in _PLACES:
        if place.is_file():
            return [sys.executable, str(place)]
    raise ConfigError(
        f"the drill's own training is missing: there is no {_PLACES[0]}", kind="installation",
        hint="Install unbroken again, or give a command: unbroken drill -- python train.py",
    )  # fmt: skip
