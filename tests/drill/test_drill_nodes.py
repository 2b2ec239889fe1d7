"""Drills of several ranks end to end: real torchruns, real agents, real signals, one node interrupted at a time."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
KINDS = {"ec2-notice", "sigterm", "kill-trainer", "kill-both"}


def drill(folder: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "unbroken", "drill", "--json", "--timeout", "4min", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=500, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def assert_it_proved_the_resume(found: dict[str, Any], steps: int) -> None:
    assert found["passed"] is True
    assert {one["kind"] for one in found["interruptions"]} == KINDS
    attempts = found["attempts"]
    assert attempts[-1]["cause"] == "finished"
    assert sum(line["steps_done"] for line in attempts) - found["steps_repeated"] == steps
    for line, following in itertools.pairwise(attempts):
        assert line["last_step"] - line["steps_repeated"] == following["restored_step"]
    for line in attempts:
        if line["cause"].startswith(("SIGTERM", "two-minute")):
            assert line["steps_repeated"] == 0  # all ranks stopped, and saved, at the same step
    groups = {group["name"]: group for group in found["comparison"]["groups"]}
    assert {"model", "optimizer", "data", "logged values"} <= set(groups)
    assert groups["logged values"]["values"] == steps


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_of_two_nodes_one_is_interrupted_at_a_time_and_the_training_ends_alike(tmp_path: Path) -> None:
    found = drill(tmp_path, "--nodes", "2", "--ranks-per-node", "2", "--interruptions", "4", "--seed", "1")
    assert_it_proved_the_resume(found, 150)
    assert (found["nodes"], found["ranks_per_node"]) == (2, 2)
    assert {one["node"] for one in found["interruptions"]} == {0, 1}
    struck = [line["cause"] for line in found["attempts"] if " on node " in line["cause"]]
    assert [cause[-1] for cause in struck] == [str(one["node"]) for one in found["interruptions"]]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_ranks_of_one_node_with_sharded_weights_end_alike(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "fsdp" / "train.py")]
    found = drill(tmp_path, "--ranks-per-node", "2", "--interruptions", "4", "--every", "10", "--", *command)
    assert_it_proved_the_resume(found, 150)
    assert (found["nodes"], found["ranks_per_node"]) == (1, 2)
