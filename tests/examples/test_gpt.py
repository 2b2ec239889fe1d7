"""The example: a difference of at most eight lines, and both scripts train."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unbroken.checkpoint import load_manifest, read_metrics
from unbroken.drill.example import choose_example
from unbroken.journal import Journal
from unbroken.store import open_store

GPT = Path(__file__).parents[2] / "examples" / "gpt"
TINY = {"GPT_STEPS": "40", "GPT_WIDTH": "8", "GPT_LAYERS": "1", "GPT_CONTEXT": "8", "GPT_BATCH": "2"}


def changes() -> list[str]:
    before, after = ((GPT / name).read_text().splitlines() for name in ("train_before.py", "train.py"))
    return [line for line in difflib.ndiff(before, after) if line[0] in "+-"]


def train(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(GPT / script)], env={**os.environ, **TINY}, cwd=folder, timeout=120,
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return done.stdout


def test_the_change_is_at_most_eight_lines() -> None:
    added = [line for line in changes() if line.startswith("+")]
    removed = [line for line in changes() if line.startswith("-")]
    assert 0 < len(added) <= 8
    assert len(removed) <= len(added)


def test_the_readme_shows_the_whole_change() -> None:
    readme = (GPT.parent / "README.md").read_text()
    missing = [line for line in changes() if line[0] + line[2:] not in readme]
    assert missing == []


def test_the_drill_trains_this_very_script() -> None:
    assert Path(choose_example(1).command()[1]).samefile(GPT / "train.py")


@pytest.mark.slow
def test_the_plain_script_trains(tmp_path: Path) -> None:
    assert "trained 40 steps" in train("train_before.py", tmp_path)


@pytest.mark.slow
def test_the_script_with_unbroken_trains_alike_and_leaves_a_finished_run(tmp_path: Path) -> None:
    plain = [line for line in train("train_before.py", tmp_path).splitlines() if line.startswith("step")]
    with_unbroken = train("train.py", tmp_path)
    assert len(plain) == 2
    assert [line for line in with_unbroken.splitlines() if line.startswith("step")] == plain
    store = open_store(str(tmp_path / "runs" / "gpt"))
    state = Journal.open(store).state
    assert state.finished_step == 40
    metrics = read_metrics(store, state, state.checkpoints[-1])
    assert [step for step, _ in metrics["loss"]] == list(range(1, 41))
    assert len(set(metrics["batch"])) == 40
    names = {tensor.name.split("/")[0] for tensor in load_manifest(store, state.checkpoints[-1]).tensors}
    assert {"model", "optimizer", "data_order", "rng"} <= names
