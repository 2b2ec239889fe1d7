"""``unbroken plan``, as typed, for the reference job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "plan" / "job.yaml")


def plan(*arguments: str, place: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "unbroken", "plan", *arguments]
    environment = {**os.environ, "COLUMNS": "110"}
    return subprocess.run(
        command, env=environment, cwd=place, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip


def test_json_has_a_row_for_each_way_and_the_source_of_each_input(tmp_path: Path) -> None:
    done = plan(EXAMPLE, "--hazard", "0.0625", "--restart", "9min", "--trainings", "2000", "--json", place=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = {row["scenario"]: row for row in document["rows"]}
    assert list(rows) == ["on-demand", "unbroken", "usual saves", "no checkpoints"]
    assert abs(rows["unbroken"]["cost"] / 406.0 - 1.0) < 0.01
    assert rows["no checkpoints"]["interval"] is None
    assert document["inputs"]["hazard"] == {"value": 0.0625, "source": "given"}
    assert document["inputs"]["upload"]["source"] == "assumed"
    assert "not cheap" in document["warnings"][0]
    assert document["deadline_hours"] == 72.0


def test_people_get_tables_and_the_warning(tmp_path: Path) -> None:
    done = plan(EXAMPLE, "--hazard", "0.0625", "--trainings", "500", place=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no checkpoints" in done.stdout
    assert "hazard: 0.0625 (given)" in done.stdout
    assert "spot without checkpoints is not cheap" in done.stdout


def test_the_cadence_and_a_deadline_of_the_job_count(tmp_path: Path) -> None:
    text = "name: a\nrun: runs/a\nscript: train.py\nexpected_hours: 48\nprices: {on_demand: 25, spot: 8}\n"

    def interval_and_deadline(more: str, *arguments: str) -> tuple[float, float | None]:
        (tmp_path / "job.yaml").write_text(text + more)
        done = plan("job.yaml", "--hazard", "0.0625", "--trainings", "100", "--json", *arguments, place=tmp_path)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        return document["rows"][1]["interval"], document["deadline_hours"]

    assert interval_and_deadline("every: 15min\n") == (0.25, None)
    assert interval_and_deadline("every: 500\nsteps: 1000\n") == (24.0, None)
    assert interval_and_deadline("every: 'auto,loss=6min'\n", "--deadline", "60h") == (0.1, 60.0)
    assert interval_and_deadline("deadline: 2020-01-01T00:00:00Z\n")[1] == 0.0  # long ago


def test_what_lacks_is_said(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\nrun: runs/a\nscript: train.py\n")
    done = plan("job.yaml", place=tmp_path)
    assert (done.returncode, "expected_hours" in done.stderr) == (78, True)
    done = plan("job.yaml", "--hours", "5", place=tmp_path)
    assert (done.returncode, "no prices" in done.stderr) == (78, True)
    done = plan(EXAMPLE, "--every", "5", place=tmp_path)
    assert (done.returncode, "how long 5 steps take" in done.stderr) == (78, True)
