"""The benchmark of many ranks runs whole, at a tiny size: its times mean nothing here, but its counts do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"
SECONDS = 170


def test_scale_counts_requests_of_saves_and_restores_and_how_they_grow(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    # Of torch's own, as it looks for what is not needed here.
    command = [sys.executable, "-W", "error", "-W", "ignore::FutureWarning", str(SCRIPT)]
    done = subprocess.run(
        [*command, "--worlds", "8,16,32", "--tensors", "40", "--out", out],
        cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kinds = json.loads(out.read_text())["kinds"]
    assert list(kinds) == ["fsdp", "ddp"]
    for kind in kinds.values():
        for count, row in kind["worlds"].items():
            assert row["rank_requests"] == 2
            assert row["full_requests"] == int(count) + 1
            assert row["rank_by_kind"] == {"put packs": 1.0, "put ranks": 1.0}
            read = {"get ranks": int(count) - 8} if int(count) > 8 else {}
            assert row["commit_by_kind"] == {"create journal": 1, "list ranks": 1, "put manifests": 1, **read}
        assert kind["growth"]["record_bytes"][-1] == pytest.approx(1, abs=0.1)
    rows = kinds["fsdp"]["worlds"].values()
    assert [row["same_requests"] for row in rows] == [3, 3, 3]
    assert [row["half_requests"] for row in rows] == [5, 5, 5]
    assert "same_bytes" not in kinds["fsdp"]["steeper"]


def test_a_kind_that_is_not_known_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--kinds", "pipeline"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 2
    assert "no such kind: pipeline" in done.stderr
