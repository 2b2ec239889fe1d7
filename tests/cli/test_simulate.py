"""``unbroken simulate``, as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

JOB = """
name: gpt
run: {run}
script: train.py
expected_hours: 12
deadline: 16h
every: 30min
prices: {{on_demand: 3.0, spot: 1.0, currency: GBP}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB.format(run=tmp_path / "run"))
    data = ([1] * 30 + [0] * 9 + [1] * 5 + [0] * 4) * 12
    (tmp_path / "pool.json").write_text(json.dumps({"metadata": {"gap_seconds": 600}, "data": data}))
    return tmp_path


def simulate(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "unbroken", "simulate", "job.yaml", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120, check=False)


def test_json_has_a_row_for_each_policy_and_the_best(place: Path) -> None:
    done = simulate(
        place, "--trace", "pool.json", "--starts", "24", "--bound-starts", "4", "--processes", "2", "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [row["policy"] for row in document["rows"]][:2] == ["on-demand", "spot-only"]
    assert {row["cadence"] for row in document["rows"]} == {"30min"}
    assert document["currency"] == "GBP"
    assert document["best"]["policy"] in {row["policy"] for row in document["rows"]}
    assert 0.0 <= document["best"]["sure"] <= 1.0
    assert document["omniscient"] <= min(row["cost"] for row in document["rows"] if row["misses"] == 0) * 1.05


def test_people_get_a_table_with_bars(place: Path) -> None:
    arguments = ("--starts", "8", "--policy", "greedy", "--policy", "uniform", "--every", "10min", "--every", "auto")
    done = simulate(place, "--trace", "pool.json", "--trace", "pool.json", "--together", "--processes", "1", *arguments)
    assert done.returncode == 0, done.stderr
    assert "pool.json: 96 h, ticks of 600 s" in done.stdout
    assert "●" in done.stdout
    assert "best: " in done.stdout
    assert "omniscient" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--trace", "missing.json"), "cannot be read"),
        (("--trace", "pool.json", "--deadline", "2027-01-31T08:00:00Z"), "is a moment"),
        (("--trace", "pool.json", "--every", "500"), "knows no steps"),
        (("--trace", "pool.json", "--deadline", "200h"), "covers 96.0 h"),
        (("--trace", "pool.json", "--policy", "gready"), "no policy 'gready'"),
    ],
)
def test_what_must_be_mended_is_said(place: Path, arguments: tuple[str, ...], said: str) -> None:
    done = simulate(place, *arguments)
    assert done.returncode == 78, done.stderr
    assert said in done.stderr
