"""The examples of several ranks: short, and trained by real torchruns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unbroken.checkpoint import read_metrics
from unbroken.drill.example import choose_example
from unbroken.engine import Layout
from unbroken.journal import Journal
from unbroken.store import open_store

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["ddp", "fsdp"]


def test_the_drill_of_several_ranks_trains_this_very_script() -> None:
    assert Path(choose_example(2).command()[1]).samefile(EXAMPLES / "ddp" / "train.py")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_read_in_a_minute(name: str) -> None:
    assert len((EXAMPLES / name / "train.py").read_text().splitlines()) <= 80


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ranks"),
    [("fsdp", 1), ("ddp", 2), *(pytest.param(*rest, marks=pytest.mark.soak) for rest in [("ddp", 1), ("fsdp", 2)])],
)
def test_it_learns_and_leaves_a_finished_run(name: str, ranks: int, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    (node,) = Layout(1, ranks).lay_out([sys.executable, str(EXAMPLES / name / "train.py")], [{}])
    command = list(node.command) if ranks > 1 else [node.command[0], *torchrun, *node.command[1:]]
    small = {"DDP_STEPS": "60", "FSDP_STEPS": "60", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-m", "unbroken", "run", "--max-restarts", "0", "--", *command],
        env={**os.environ, **node.environment, **small}, cwd=tmp_path, timeout=120, check=True,
    )  # fmt: skip
    store = open_store(str(tmp_path / "runs" / name))
    state = Journal.open(store).state
    assert state.finished_step == 60
    losses = read_metrics(store, state, state.checkpoints[-1])["loss"]
    assert [step for step, _ in losses] == list(range(1, 61))
    assert sum(loss for _, loss in losses[-5:]) < 0.8 * sum(loss for _, loss in losses[:5])
