"""``unbroken render``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from unbroken.cli import main
from unbroken.cli import render as verb
from unbroken.render import EXTRAS

JOB = """\
name: a
run: s3://bucket/a
image: a:1
command: [python, a.py]
resources: {memory: 1GiB}
"""


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["render", "kubernetes", *words])
    return int(left.value.code or 0)


@pytest.fixture
def job(tmp_path: Path) -> str:
    (tmp_path / "job.yaml").write_text(JOB)
    return str(tmp_path / "job.yaml")


def test_what_can_be_asked_for_is_what_there_is() -> None:
    assert tuple(EXTRAS) == verb.EXTRAS


def test_documents_are_printed_as_one_stream(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(job, "--with", "networkpolicy") == 0
    kinds = [document["kind"] for document in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds == ["ServiceAccount", "Job", "NetworkPolicy"]


def test_a_folder_gets_a_file_for_each_and_the_list_of_them(job: str, tmp_path: Path) -> None:
    assert run(job, "--with", "iam-policy", "--output-dir", str(tmp_path / "out")) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"service-account.yaml", "job.yaml", "iam-policy.json", "kustomization.yaml"}
    listed = yaml.safe_load((tmp_path / "out/kustomization.yaml").read_text())["resources"]
    assert listed == ["service-account.yaml", "job.yaml"]


def test_json_is_not_printed_among_documents(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(job, "--with", "iam-policy") == 78
    assert "--output-dir" in capsys.readouterr().err


def test_the_schema_is_printed_for_editors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["render", "schema"])
    assert json.loads(capsys.readouterr().out)["title"] == "Unbroken job file"


def test_an_unknown_name_is_told_the_nearest(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(job, "--with", "nodepol") == 78
    assert "The nearest is nodepool" in capsys.readouterr().err


def test_a_job_file_that_is_wrong_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text(JOB.replace("image", "imag"))
    assert run(str(tmp_path / "job.yaml"), "--output-dir", str(tmp_path / "out")) == 78
    assert "job.yaml, line 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(job, "--output-dir", str(tmp_path / "file/out")) == 77
    assert "cannot be written" in capsys.readouterr().err
