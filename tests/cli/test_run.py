"""The verb ``run``, as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def unbroken(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unbroken", *arguments],
        env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_command_gets_its_arguments_its_environment_and_its_output() -> None:
    script = 'echo "$UNBROKEN_RUN|$UNBROKEN_EVERY|${UNBROKEN_SOCKET##*/}|$1"'
    result = unbroken("run", "--every", "10min", "--", "sh", "-c", script, "sh", "--grace", UNBROKEN_RUN="/tmp/r")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "/tmp/r|10min|agent.sock|--grace\n"
    assert "never opened a Run" in result.stderr


def test_command_that_never_opens_the_run_it_was_given_is_not_finished() -> None:
    result = unbroken("run", "--uri", "/tmp/r", "--max-restarts", "0", "--", "sh", "-c", 'echo "$UNBROKEN_RUN"')
    assert result.returncode == 1, result.stderr
    assert result.stdout == "/tmp/r\n"
    assert "no Run was opened (exit code 0)" in result.stderr


def test_a_job_file_says_what_options_do_not(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        f"name: a\nrun: {tmp_path}/r\nevery: 10min\nkeep: last=3\nenv: {{GREETING: hello}}\n"
        "limits: {max_restarts: 0}\n"
        """command: [sh, -c, 'echo "$UNBROKEN_RUN|$UNBROKEN_EVERY|$UNBROKEN_KEEP|$GREETING"']\n"""
    )
    told = unbroken("run", "--job", str(tmp_path / "job.yaml"))
    assert told.returncode == 1, told.stderr
    assert told.stdout == f"{tmp_path}/r|10min|last=3|hello\n"
    outranked = unbroken("run", "--every", "5min", "--job", str(tmp_path / "job.yaml"), "--", "sh", "-c", "env")
    assert "UNBROKEN_EVERY=5min" in outranked.stdout
    assert "GREETING=hello" in outranked.stdout


def test_a_rule_of_keeping_that_cannot_be_read_ends_with_78() -> None:
    result = unbroken("run", "--keep", "first=3", "--", "sh", "-c", "exit 0")
    assert result.returncode == 78
    assert "first" in result.stderr


def test_a_job_file_of_several_nodes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"name: a\nrun: {tmp_path}/r\ncommand: [python, a.py]\nranks: {{nodes: 2}}\n")
    result = unbroken("run", "--job", str(tmp_path / "job.yaml"))
    assert result.returncode == 78
    assert "the job has 2 nodes" in result.stderr


def test_command_needs_no_dashes_before_it() -> None:
    assert unbroken("run", "sh", "-c", "exit 0").returncode == 0


def test_no_command_is_a_configuration_error_with_a_hint() -> None:
    result = unbroken("run")
    assert result.returncode == 78
    assert "unbroken run -- python train.py" in result.stderr


def test_command_that_is_not_there_ends_with_78_and_its_name() -> None:
    result = unbroken("run", "--", "no-such-command")
    assert result.returncode == 78
    assert "'no-such-command' cannot be started: No such file or directory" in result.stderr


def test_file_that_is_not_executable_ends_with_78(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("print()")
    result = unbroken("run", "--", str(script))
    assert result.returncode == 78
    assert "Permission denied" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--grace", "soon"], ["--max-restarts", "-1"], ["--no-progress-limit", "0"], ["--price", "-1"], ["--nonsense"]],
)
def test_wrong_options_end_with_78(arguments: list[str]) -> None:
    assert unbroken("run", *arguments, "--", "true").returncode == 78


def test_a_source_of_notices_that_there_is_not_ends_with_78_and_the_nearest() -> None:
    result = unbroken("run", "--notices", "ec2,gpc", "--", "true")
    assert result.returncode == 78
    assert "--notices: 'gpc' is no source of notices" in result.stderr
    assert "Did you mean 'gcp'?" in result.stderr


def test_the_sources_of_notices_are_those_of_the_option_also_for_what_the_command_starts() -> None:
    result = unbroken(
        "run", "--notices", "-azure", "--", "sh", "-c", 'echo "$UNBROKEN_NOTICES"', UNBROKEN_NOTICES="none"
    )
    assert result.stdout == "-azure\n"


def test_max_restarts_bounds_the_restarts() -> None:
    result = unbroken("run", "--max-restarts", "0", "--", "sh", "-c", "exit 3")
    assert result.returncode == 1
    assert "the command ended: exit code 3\n" in result.stderr


def test_run_imports_no_torch() -> None:
    script = "import sys, unbroken.cli.run, unbroken.agent.supervisor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
