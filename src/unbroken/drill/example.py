"""The trainings that ``unbroken drill`` uses when it is given none: ``examples/gpt/train.py``, and for several ranks
``examples/ddp/train.py``.

There is one copy of their text. The wheel carries them beside this module; a checkout has them in ``examples/``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from unbroken.errors import ConfigError

_HERE = Path(__file__)


@dataclass(frozen=True)
class Example:
    """One of the trainings: the folder of its script, and how it is drilled."""

    name: str
    every: str
    """Its cadence in the drill, in steps."""
    environment: dict[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        """The command that trains it.

        Raises:
            ConfigError: PyTorch is not installed, or the installation lacks the script.
        """
        if find_spec("torch") is None:
            raise ConfigError(
                "the drill's own training needs PyTorch, which is not installed", kind="extra",
                hint="Install it with: pip install 'unbroken[torch]'",
            )  # fmt: skip
        places = [_HERE.parent / self.name / "train.py", _HERE.parents[3] / "examples" / self.name / "train.py"]
        for place in places:
            if place.is_file():
                return [sys.executable, str(place)]
        raise ConfigError(
            f"the drill's own training is missing: there is no {places[0]}", kind="installation",
            hint="Install unbroken again, or give a command: unbroken drill -- python train.py",
        )  # fmt: skip


GPT = Example("gpt", every="20")
"""300 steps of one process."""
DDP = Example("ddp", every="10", environment={"CUDA_VISIBLE_DEVICES": ""})
"""150 short steps of any number of ranks, on the processor: nodes that are rehearsed cannot share one GPU."""


def choose_example(ranks: int) -> Example:
    """The example for so many ranks."""
    return GPT if ranks == 1 else DDP
