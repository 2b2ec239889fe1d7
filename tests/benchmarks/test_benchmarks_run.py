"""The benchmarks run whole, at a tiny size: their numbers mean nothing here, but they must not rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SECONDS = 170


def run_benchmark(script: str, *arguments: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "error", str(BENCHMARKS / script), *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "methods"), [("s3", ["unbroken", "naive", "naive-tuned"]), ("folder", ["unbroken", "naive"])]
)
def test_save_restore_measures_every_method_on_each_store(store: str, methods: list[str], tmp_path: Path) -> None:
    result = run_benchmark(
        "save_restore.py", "--size", "2MB", "--repetitions", "1", "--saves", "2", "--store", store,
        out=tmp_path / "results.json",
    )  # fmt: skip
    assert list(result["methods"]) == methods
    for method in result["methods"].values():
        assert len(method["saves"][0]) == 2
        assert method["stored_bytes"] >= result["setup"]["state_bytes"] >= 1_900_000
        for row in ("stall_first", "stall_later", "durable_first", "durable_later", "restore", "open_and_restore"):
            assert method["summary"][row]["median_s"] > 0, row
    text = (tmp_path / "results.json").read_text()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text


def test_step_overhead_measures_the_loop(tmp_path: Path) -> None:
    result = run_benchmark("step_overhead.py", "--chunks", "5", "--steps", "50", out=tmp_path / "results.json")
    assert result["run_us"] > 0
    assert result["empty_us"] > 0


def test_a_torn_snapshot_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from save_restore import TornError, check_restored
    from training_state import Training

    training = Training(60_000, seed=1, stepped=True)
    saved = training.digests()
    check_restored("sound", saved, training.digests())
    training.step()
    moved = training.digests()
    assert all(before != after for before, after in zip(saved, moved, strict=True))
    with pytest.raises(TornError, match="differing"):
        check_restored("torn", saved, [*saved[:-1], moved[-1]])
    with pytest.raises(TornError):
        check_restored("nothing", [], [])
