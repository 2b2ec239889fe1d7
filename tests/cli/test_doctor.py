"""The verb ``doctor``, as a user calls it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from unbroken.cli import main


def _doctor(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["doctor", *words])
    return int(left.value.code or 0)


def _job(folder: Path, **resources: str) -> Path:
    path = folder / "job.yaml"
    needs = "".join(f"\n  {name}: {value}" for name, value in resources.items())
    path.write_text(
        f"name: gpt\nrun: {folder / 'run'}\ncommand: [{sys.executable}, train.py]\nresources:{needs or ' {}'}\n"
    )
    return path


def test_a_job_s_place_is_checked_and_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = _job(tmp_path, state="1MB", shm="1KiB", scratch="1KiB")
    assert _doctor(str(job), "--skip", "metadata", "--skip", "torchrun", "--skip", "bandwidth") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok      store       put, create-only put, ranged get, list, delete")
    assert any(line.startswith("ok      memory") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_lines_fit_a_terminal_of_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _doctor("--run", "relative/run", "--only", "memory", "--only", "lifecycle", "--state", "900TB") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 80
    assert any("why: " in line for line in lines)
    assert any("do: " in line for line in lines)
    assert lines[-1] == "1 warning, 1 note"


def test_json_holds_findings_and_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert _doctor("--run", str(tmp_path / "file"), "--only", "store", "--json") == 78
    document = json.loads(capsys.readouterr().out)
    assert document["uri"] == str(tmp_path / "file")
    assert document["exit_code"] == 78
    assert [(one["check"], one["severity"], one["exit_code"]) for one in document["findings"]] == [
        ("store", "error", 78)
    ]


def test_a_warning_fails_where_it_is_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert _doctor("--only", "memory", "--state", "900TB", "--fail-on", "warning") == 1
    assert "1 warning" in capsys.readouterr().out


def test_an_unknown_check_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert _doctor("--only", "memmory") == 78
    assert "The nearest is memory" in capsys.readouterr().err


def test_a_job_and_a_run_are_not_taken_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _doctor(str(_job(tmp_path)), "--run", "/else") == 78
    assert "both given" in capsys.readouterr().err


def test_a_missing_job_file_ends_with_10(tmp_path: Path) -> None:
    assert _doctor(str(tmp_path / "job.yaml")) == 10


def test_the_job_s_environment_leads_to_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "restored afterwards")
    job = tmp_path / "job.yaml"
    job.write_text("name: a\nrun: s3://b/run\nscript: train.py\nenv: {AWS_ENDPOINT_URL: 'no-url-of-the-job'}\n")
    assert _doctor(str(job), "--only", "store") == 78
    assert "no-url-of-the-job" in capsys.readouterr().out
