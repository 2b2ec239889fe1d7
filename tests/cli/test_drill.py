"""The verb ``drill``: what it refuses before it starts anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unbroken.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as leaving:
        main(["drill", *arguments])
    return int(leaving.value.code or 0), capsys.readouterr().err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--interruptions", "3"], "interruptions"),
        (["--timeout", "soon", "--", "true"], "'soon' is not a duration"),
        (["--store", "s3://bucket", "--", "true"], "names no path below the S3 bucket"),
        (["--store", "ftp://host/path", "--", "true"], "unknown scheme 'ftp'"),
        (["--spot", "cheap", "--", "true"], "cheap"),
        (["--nodes", "0"], "nodes"),
        (["--nodes", "2", "--", "true"], "'true' is not Python"),
        (["--ranks-per-node", "2", "--", "torchrun", "train.py"], "'torchrun' is not Python"),
        (["--ranks-per-node", "2", "--", "python", "-c", "pass"], "'-c' after 'python' is neither a script"),
        (["--nodes", "999", "--", "python", "train.py"], "999 nodes"),
    ],
)
def test_options_that_make_no_sense_are_configuration_errors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    code, err = refused(capsys, *arguments)
    assert code == 78
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_job_file_with_a_wrong_field_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "job.yml").write_text("name: a\nrun: r\ncomand: [c]\n")
    code, err = refused(capsys, "job.yml")
    assert code == 78
    assert "job.yml, line 3, column 1: there is no field 'comand'" in err
    assert "'command'" in err


def test_a_job_file_that_is_not_there_is_not_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "nowhere.yaml")[0] == 10


def test_a_store_that_is_a_file_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, err = refused(capsys, "--store", "file", "--", "true")
    assert code in (77, 78)
    assert str(tmp_path / "file") in err


@pytest.mark.usefixtures("s3_environment")
def test_a_bucket_that_is_missing_is_told_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, err = refused(capsys, "--store", "s3://no-such-bucket/drills", "--", "true")
    assert code == 10
    assert "s3://no-such-bucket/drills" in err
    assert not (tmp_path / "drill").exists()


def test_help_of_the_drill_loads_neither_pydantic_nor_torch() -> None:
    code = (
        "import sys, unbroken.cli\n"
        "try: unbroken.cli.main(['drill', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'pydantic', 'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.endswith("[]\n"), done.stdout
