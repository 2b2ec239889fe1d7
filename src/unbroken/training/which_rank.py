"""Which rank this process is, for what may be asked before there is a process group."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from unbroken.errors import ConfigError


def which_rank(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Rank and world size: as the default process group says, else as the launcher's ``RANK`` and ``WORLD_SIZE`` say,
    else 0 of 1.

    Raises:
        ConfigError: the environment speaks of several ranks and does not say which one this is.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    texts = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if texts[1] in ("", "1"):
        return 0, 1
    if not (texts[0].isdecimal() and texts[1].isdecimal() and int(texts[0]) < int(texts[1])):
        raise ConfigError(
            f"RANK is {texts[0]!r} and WORLD_SIZE is {texts[1]!r}: that does not say which rank this is", kind="ranks",
            hint="Start with torchrun, or call torch.distributed.init_process_group() before",
        )  # fmt: skip
    return int(texts[0]), int(texts[1])
