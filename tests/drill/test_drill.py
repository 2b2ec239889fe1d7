"""The drill end to end: real trainings, real signals, real stores."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

TRAINING = [sys.executable, str(Path(__file__).with_name("training.py"))]


def drill(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unbroken", "drill", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=150, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def assert_it_proved_the_resume(found: dict[str, Any], store: str) -> None:
    assert found["passed"] is True
    assert found["missed"] == []
    assert {one["kind"] for one in found["interruptions"]} == {"ec2-notice", "sigterm", "kill-trainer", "kill-both"}
    assert all(uri.startswith(store) for uri in found["runs"].values())
    attempts = found["attempts"]
    assert len(attempts) == 5
    assert [line["cause"] for line in attempts][-1] == "finished"
    assert {line["cause"] for line in attempts[:-1]} == {
        "two-minute EC2 notice", "SIGTERM", "SIGKILL trainer", "SIGKILL trainer+agent",
    }  # fmt: skip
    for line, following in itertools.pairwise(attempts):
        killed = "SIGKILL" in line["cause"]
        assert line["last_step"] - line["steps_repeated"] == following["restored_step"]
        assert killed or line["steps_repeated"] == 0
        assert line["lost_seconds"] > 0
    assert sum(line["steps_done"] for line in attempts) - found["steps_repeated"] == 120
    groups = {group["name"]: group for group in found["comparison"]["groups"]}
    assert {"model", "optimizer", "scheduler", "order", "rng", "logged values"} <= set(groups)
    assert groups["logged values"]["values"] == 240
    cost = found["cost"]
    assert cost["spot"]["amount"] == pytest.approx(cost["spot"]["seconds"] / 3600 * 2.0)


@pytest.mark.slow
def test_a_sound_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    arguments = ["--interruptions", "4", "--every", "10", "--store", str(tmp_path / "store"), "--spot", "2"]
    done = drill(tmp_path, *arguments, "--json", "--", *TRAINING, "sound")
    assert done.returncode == 0, done.stderr
    assert_it_proved_the_resume(findings(done), str(tmp_path / "store"))
    assert "interruption 4 of 4" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("s3_environment")
def test_a_job_file_is_drilled_on_s3(tmp_path: Path, s3_server: Any) -> None:
    job = {
        "name": "small", "run": "s3://unused/run", "command": [*TRAINING, "sound"], "every": 10,
        "prices": {"on_demand": 10.0, "spot": 2.0, "currency": "EUR"},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    store = f"s3://{s3_server.bucket}/drills"
    done = drill(tmp_path, "--interruptions", "4", "--seed", "3", "--store", store, "--json", "job.yaml")
    assert done.returncode == 0, done.stderr
    found = findings(done)
    assert_it_proved_the_resume(found, store)
    assert found["cost"]["on_demand"]["currency"] == "EUR"
    assert found["cost"]["assumed_prices"] is False


@pytest.mark.slow
def test_state_that_is_left_out_is_found_and_named(tmp_path: Path) -> None:
    done = drill(tmp_path, "--interruptions", "4", "--every", "10", "--", *TRAINING, "order")
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("differs:")]
    for name in ("model/", "logged values/batch", "logged values/loss"):
        assert any(name in line for line in lines), done.stdout
    assert "identical:" not in done.stdout
    assert "missing from the run's state" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_a_training_that_is_not_deterministic_is_told_apart(tmp_path: Path) -> None:
    done = drill(tmp_path, "--every", "10", "--check-determinism", "--json", "--", *TRAINING, "entropy")
    assert done.returncode == 1, done.stderr
    found = findings(done)
    assert (found["deterministic"], found["identical"], found["attempts"]) == (False, False, [])
    assert {"order", "model", "logged values"} <= {one["group"] for one in found["comparison"]["differences"]}


@pytest.mark.slow
def test_a_training_too_short_to_interrupt_is_refused(tmp_path: Path) -> None:
    done = drill(tmp_path, "--every", "10", "--", *TRAINING, "short")
    assert done.returncode == 78
    assert "do not fit between the first save at step 10 and the end at step 12" in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["-c", "print('just a program')"], ["no Run was opened (exit code 0)", "just a program"]),
        (["-c", "raise SystemExit('no data here')"], ["ended with 1", "no data here"]),
    ],
)
def test_a_command_that_opens_no_run_is_a_configuration_error(
    tmp_path: Path, command: list[str], words: list[str]
) -> None:
    done = drill(tmp_path, "--", sys.executable, *command)
    assert done.returncode == 78, done.stderr
    assert all(word in done.stderr for word in ["never opened an unbroken.Run", *words]), done.stderr


def test_a_command_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    done = drill(tmp_path, "--", "no-such-program")
    assert done.returncode == 78
    assert "no-such-program" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_drill_that_is_stopped_leaves_no_process(tmp_path: Path) -> None:
    script = "import time; print('asleep', flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-m", "unbroken", "drill", "--", sys.executable, "-c", script],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        below = _family_asleep(process, tmp_path)
        process.terminate()
        assert process.wait(30) == 130
        _, alive = psutil.wait_procs(below, timeout=10)
        assert alive == []
    finally:
        process.kill()
        process.wait()


def _family_asleep(process: subprocess.Popen[bytes], folder: Path) -> list[psutil.Process]:
    """The drill's processes, once its command runs."""
    me = psutil.Process(process.pid)
    for _ in range(600):
        if any(b"asleep" in log.read_bytes() for log in folder.glob("drill/*/logs/*.log")):
            return me.children(recursive=True)
        process_ended = process.poll()
        assert process_ended is None
        os.sched_yield()
        psutil.wait_procs([me], timeout=0.1)
    pytest.fail("the drill's command never ran")
