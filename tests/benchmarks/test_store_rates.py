"""The benchmark of stores runs whole, at a tiny size: its numbers mean nothing here, but it must not rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SECONDS = 170


def test_store_rates_measures_a_save_beside_the_barest_write_to_each_store(tmp_path: Path) -> None:
    out = tmp_path / "rates.json"
    command = [
        sys.executable,
        "-W",
        "error",
        str(BENCHMARKS / "store_rates.py"),
        "--size",
        "20MB",
        "--repetitions",
        "2",
    ]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    tables = json.loads(out.read_text())["tables"]
    assert list(tables["s3"]) == ["save", "bare put"]
    assert list(tables["folder"]) == ["save", "save, tensors not aligned", "bare buffered", "bare O_DIRECT"]
    for methods in tables.values():
        assert max(row["rate_to_best_bare"] for name, row in methods.items() if name.startswith("bare")) == 1.0
        for row in methods.values():
            assert row["wall_s"] > 0
            assert row["cpu_s_per_gb"] > 0
            assert len(row["samples"]["wall"]) == 2
    assert str(tmp_path) not in out.read_text()
