"""Which commands may start ranks again."""

from __future__ import annotations

import pytest

from unbroken.agent.torchrun import restarts_ranks


@pytest.mark.parametrize(
    ("options", "restarts"),
    [
        ("--nnodes=2 --max-restarts=0 train.py", False),
        ("--nproc-per-node 8 train.py", False),
        ("--nnodes=1:4 train.py", True),
        ("--nnodes 1:4 train.py", True),
        ("--max-restarts=3 train.py", True),
        ("--max_restarts 3 train.py", True),
        ("--max-restarts", False),
    ],
)
def test_torchrun_may_start_ranks_again_where_its_options_say_so(options: str, restarts: bool) -> None:
    assert restarts_ranks(["torchrun", *options.split()]) is restarts
