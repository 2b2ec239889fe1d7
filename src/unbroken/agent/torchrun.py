"""What a command that is torchrun needs to be told."""

from __future__ import annotations

from collections.abc import Sequence

OWN_STORE = ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
"""Environment variable and value by which the ranks of each start meet in a new store, hosted by rank 0. Otherwise
torchrun (2.13) hosts one for all starts of its ranks: those that start again read where the dead ones were, and a node
that joins a running training is never told where it is."""


def restarts_ranks(command: Sequence[str]) -> bool:
    """Whether this is a torchrun that may start its ranks again: ``--nnodes=MIN:MAX``, or some ``--max-restarts``."""
    nodes, restarts = _option(command, "--nnodes"), _option(command, "--max-restarts")
    return ":" in nodes or (restarts.isdigit() and int(restarts) > 0)


def _option(command: Sequence[str], name: str) -> str:
    """The value of an option, in any of the ways in which torchrun takes it; "" where it is not given."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        given, equals, value = word.replace("_", "-").partition("=")
        if given == name:
            return value if equals else following
    return ""
