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


def test_what_lacks_is_said(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\nrun: runs/a\nscript: train.py\n")
    done = plan("job.yaml", place=tmp_path)
    assert (done.returncode, "expected_hours" in done.stderr) == (78, True)
    done = plan("job.yaml", "--hours", "5", place=tmp_path)
    assert (done.returncode, "no prices" in done.stderr) == (78, True)
    done = plan(EXAMPLE, "--every", "5", place=tmp_path)
    assert done.returncode == 78
