"""The benchmark of several ranks runs whole, at a small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ranks.py"


@pytest.mark.soak
def test_ranks_measures_one_process_and_many(tmp_path: Path) -> None:
    out = tmp_path / "ranks.json"
    command = [sys.executable, str(SCRIPT), "--size", "200MB", "--repetitions", "1", "--every", "12", "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert len(result["samples"]) == 4
    assert all(found["stall"] >= 0 and found["durable"] > 0 for [found] in result["samples"].values())
    assert str(tmp_path) not in out.read_text()
