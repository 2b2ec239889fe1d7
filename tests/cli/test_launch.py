"""``launch``, ``status``, ``logs`` and ``stop`` of a job file, as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

JOB = """
name: tiny
run: {run}
command: [{python}, -c, "{code}"]
grace: 5s
limits: {{max_restarts: 0}}
notices: {{off: [ec2, gcp, azure, kubernetes]}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    code = "import time; print('ready', flush=True); time.sleep(600)"
    (tmp_path / "job.yaml").write_text(JOB.format(run=tmp_path / "run", python=sys.executable, code=code))
    yield tmp_path
    unbroken(tmp_path, "stop", "job.yaml")


def unbroken(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "unbroken", *arguments]
    environment = {**os.environ, "XDG_STATE_HOME": str(place / "state"), "COLUMNS": "100"}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_job_is_launched_looked_at_and_stopped(place: Path) -> None:
    launched = unbroken(place, "launch", "job.yaml", "--json")
    assert launched.returncode == 0, launched.stderr
    assert json.loads(launched.stdout)["state"] in ("waiting", "running")
    again = unbroken(place, "launch", "job.yaml")
    assert "job tiny: " in again.stdout
    stopped = unbroken(place, "stop", "job.yaml", "--json")
    assert stopped.returncode == 0, stopped.stderr
    document = json.loads(stopped.stdout)
    assert (document["engine"], document["state"], document["durable_step"]) == ("local", "stopped", None)


def test_a_failed_job_says_why_and_its_log_what(place: Path) -> None:
    text = (place / "job.yaml").read_text().replace("time.sleep(600)", "raise SystemExit(3)")
    (place / "job.yaml").write_text(text)
    followed = unbroken(place, "launch", "job.yaml", "--follow")
    assert (followed.returncode, "ready" in followed.stdout) == (1, True), followed.stderr
    status = unbroken(place, "status", "job.yaml")
    assert "job tiny: failed" in status.stdout
    assert "ended with 1: failed" in status.stdout
    assert (status.returncode, "no attempt has begun" in status.stdout) == (0, True)  # the command opened no run
    assert "ready" in unbroken(place, "logs", "job.yaml").stdout


def test_what_is_not_there_is_named(place: Path) -> None:
    for verb in ("logs", "stop"):
        done = unbroken(place, verb, "job.yaml")
        assert (done.returncode, "there is no job tiny" in done.stderr) == (10, True)
    refused = unbroken(place, "launch", "job.yaml", "--policy", "greedy")
    assert (refused.returncode, "a policy needs a market" in refused.stderr) == (78, True)
