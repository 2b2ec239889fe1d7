"""The step that a checkpoint id of torch.distributed.checkpoint speaks of."""

from __future__ import annotations

import os
import re

from unbroken.errors import ConfigError

_NUMBER = re.compile(r"([0-9]+)/*\Z")


def step_of(checkpoint_id: str | os.PathLike[str] | None) -> int | None:
    """The number with which an id ends: 100 of ``100``, ``step-100`` and ``outputs/step-100``; None for no id.

    Raises:
        ConfigError: it ends with no number.
    """
    if checkpoint_id is None:
        return None
    text = os.fspath(checkpoint_id)
    found = _NUMBER.search(text)
    if found is None:
        raise ConfigError(
            f"the checkpoint id {text!r} does not end with a step", kind="checkpoint-id",
            hint="Give one like 'step-100': the number at its end is the step; the URI says where",
        )  # fmt: skip
    return int(found[1])
