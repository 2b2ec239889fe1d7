"""The job file: what it accepts, and how it names what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from unbroken.errors import ConfigError, NotFoundError
from unbroken.job import load_job

WHOLE = """\
name: llama
run: s3://bucket/llama
command: [python, train.py, --lr, "3e-4"]
env:
  OMP_NUM_THREADS: 4
every: 10min
grace: 2min
prices:
  on_demand: 25.0
  spot: 8.33
  currency: GBP
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_every_field_is_read(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, WHOLE))
    assert job.command == ["python", "train.py", "--lr", "3e-4"]
    assert job.env == {"OMP_NUM_THREADS": "4"}
    assert (job.every, job.grace) == ("10min", 120.0)
    assert job.prices is not None
    assert (job.prices.on_demand, job.prices.spot, job.prices.currency) == (25.0, 8.33, "GBP")


def test_three_fields_are_enough(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, "name: a\nrun: runs/a\ncommand: [train]\n"))
    assert (job.env, job.every, job.grace, job.prices) == ({}, None, None, None)


@pytest.mark.parametrize("every", ["20", "90s", "auto", "auto,cap=2%,loss=15min"])
def test_cadences_of_each_kind_are_accepted(tmp_path: Path, every: str) -> None:
    assert load_job(write(tmp_path, f"name: a\nrun: r\ncommand: [c]\nevery: {every}\n")).every == every


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("every: 10min", "evry: 10min", ["line 6", "'evry'", "Did you mean 'every'?"]),
        ("  spot: 8.33", "  spott: 8.33", ["line 10", "'prices.spott'", "Did you mean 'spot'?"]),
        ("  spot: 8.33", "  spot: cheap", ["line 10", "prices.spot", "'cheap'", "a number is needed"]),
        ("  spot: 8.33", "  spot: -1", ["line 10", "prices.spot", "greater than 0"]),
        ("  spot: 8.33\n", "", ["line 8", "'prices.spot'", "missing"]),
        ("run: s3://bucket/llama\n", "", ["job.yaml", "'run'", "missing"]),
        ("every: 10min", "every: 10", []),
        ("every: 10min", "every: 0", ["line 6", "every", "'0'"]),
        ("every: 10min", "every: often", ["line 6", "every", "'often'"]),
        ("every: 10min", "every: auto,cup=1%", ["line 6", "every", "'cup'", "Did you mean 'cap'?"]),
        ("grace: 2min", "grace: 120", ["line 7", "grace", "with its unit"]),
        ("  OMP_NUM_THREADS: 4", "  OMP_NUM_THREADS: yes", []),
        ('[python, train.py, --lr, "3e-4"]', "python train.py", ["line 3", "command", "[python, train.py]"]),
        ('[python, train.py, --lr, "3e-4"]', "[python, [3]]", ["line 3", "command.1", "a list of 1"]),
        ("  OMP_NUM_THREADS: 4", " - a\n b: [", ["line 6", "not YAML"]),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    path = write(tmp_path, WHOLE.replace(old, new))
    if not words:
        load_job(path)
        return
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert all(word in str(caught.value) for word in ["job.yaml", *words]), str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not a mapping"):
        load_job(write(tmp_path, text))


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no job file .*nowhere\.yaml"):
        load_job(tmp_path / "nowhere.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_job(path)
