"""Which of the training's processes this one is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from unbroken.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among those of the training.

    Args:
        rank: its number, from 0.
        world_size: how many there are.
        local_rank: its number among those of its node.
        node: number of the node.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node: int = 0

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """As the default process group says, and the launcher's environment where it says more.

        Args:
            environment: with ``WORLD_SIZE``, ``LOCAL_RANK`` and ``GROUP_RANK`` as torchrun sets them.

        Raises:
            ConfigError: the environment speaks of several ranks, and no process group was initialised.
        """
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
            return cls(
                rank, world_size, _number(environment, "LOCAL_RANK", 0) if world_size > 1 else 0,
                _number(environment, "GROUP_RANK", 0) if world_size > 1 else 0,
            )  # fmt: skip
        world_size = _number(environment, "WORLD_SIZE", 1)
        if world_size > 1:
            raise ConfigError(
                f"WORLD_SIZE is {world_size}, and no process group was initialised", kind="ranks",
                hint="Call torch.distributed.init_process_group() before Run",
            )  # fmt: skip
        return cls()


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    try:
        number = int(text) if text else default
    except ValueError:
        number = -1
    if number < 0:
        raise ConfigError(
            f"{name} is {text!r} in the environment, and should be a number", kind="ranks",
            hint="Leave it to the launcher",
        )  # fmt: skip
    return number
