from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unbroken.cli import main
from unbroken.journal.events import CheckpointCommitted

_BAD = "kind: NodePool\nmetadata: {name: p}\nspec:\n  template:\n    spec:\n      terminationGracePeriod: 110s\n"


def _run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["lint", *words])
    return int(left.value.code or 0)


def test_finding_ends_with_1_unless_it_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pool.yaml").write_text(_BAD)
    assert _run(str(tmp_path)) == 1
    assert "pool.yaml:3: warning[consolidation] NodePool/p spec.disruption" in capsys.readouterr().out
    assert _run(str(tmp_path), "--fail-on", "error") == 0
    assert _run(str(tmp_path), "--ignore", "consolidation") == 0


def test_json_holds_the_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pool.yaml").write_text(_BAD)
    assert _run(str(tmp_path / "pool.yaml"), "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert [one["rule"] for one in document["findings"]] == ["consolidation"]
    assert document["documents"] == 1


def test_unknown_rule_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(str(tmp_path), "--ignore", "consolidate") == 78
    assert "consolidation" in capsys.readouterr().err


def test_what_is_no_yaml_ends_with_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\na: 2\n")
    assert _run(str(tmp_path)) == 78
    assert "a.yaml:2:" in capsys.readouterr().err


def test_folder_without_a_training_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(str(tmp_path)) == 0
    assert "No document" in capsys.readouterr().out


def test_the_saves_of_a_run_are_held_against_the_grace(
    tmp_path: Path, run_writer: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    writer = run_writer(str(tmp_path / "run"))
    (tmp_path / "job.yaml").write_text("kind: Job\nspec: {template: {spec: {terminationGracePeriodSeconds: 100}}}\n")
    assert _run(str(tmp_path / "job.yaml"), "--run", writer.uri) == 10
    assert "no checkpoint yet" in capsys.readouterr().err
    writer.append(CheckpointCommitted(1, "manifests/1", "sha", 1, 1, seconds=300.0))
    _run(str(tmp_path / "job.yaml"), "--run", writer.uri)
    assert "The save takes 300 s" in capsys.readouterr().out
