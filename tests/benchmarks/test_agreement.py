"""The benchmark of agreements runs whole, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "agreement.py"


@pytest.mark.slow
def test_agreement_measures_threads_processes_and_a_step(tmp_path: Path) -> None:
    out = tmp_path / "agreement.json"
    size = ("--threads", "2", "--processes", "2", "--rounds", "3", "--steps", "100")
    command = [sys.executable, "-W", "error", str(SCRIPT), *size, "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["threads"]["2"]["median_ms"] > 0
    assert result["processes"]["2"]["median_ms"] > 0
    assert result["step"]["asking_ns"] > 0
    assert str(tmp_path) not in out.read_text()
