"""The benchmarks of planning run whole, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(place: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *command], cwd=place, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_replays_time_is_measured(tmp_path: Path) -> None:
    sizes = ("--starts", "4", "--days", "6", "--bound-starts", "1", "--processes", "1")
    result = json.loads(run(tmp_path, str(FOLDER / "simulate.py"), *sizes))
    assert result["seconds"] > 0
    assert result["seconds_with_bound"] > 0


def test_the_policies_worth_is_measured_on_given_files(tmp_path: Path) -> None:
    data = ([1] * 30 + [0] * 9 + [1] * 5 + [0] * 4) * 20
    (tmp_path / "pool.json").write_text(json.dumps({"metadata": {"gap_seconds": 300}, "data": data}))
    sizes = ("--gap-seconds", "600", "--starts", "8", "--bound-starts", "2", "--processes", "1")
    cell = json.loads(run(tmp_path, str(FOLDER / "policies.py"), "pool.json", *sizes))
    assert cell["omniscient"]["cost"] <= cell["programme"]["cost"] * 1.05
    assert cell["programme"]["misses"] == 0
