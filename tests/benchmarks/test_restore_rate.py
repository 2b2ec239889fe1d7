"""The benchmark of restores runs whole, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "restore_rate.py"


@pytest.mark.slow
def test_restore_rate_measures_every_method(tmp_path: Path) -> None:
    out = tmp_path / "rates.json"
    command = [sys.executable, "-W", "error", str(SCRIPT), "--size", "2MB", "--repetitions", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert set(result["methods"]) == {
        "s3", "s3_new", "bare", "bare_placed", "folder", "torch", "memory", "memory_new",
    }  # fmt: skip
    assert all(row["median_s"] > 0 for row in result["methods"].values())
    assert str(tmp_path) not in out.read_text()
