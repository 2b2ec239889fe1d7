"""``unbroken pools``, as typed, from the example's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "pools"
FROM = ("--from", str(EXAMPLE / "prices.csv"), "--from", str(EXAMPLE / "scores.json"))


def pools(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "unbroken", "pools", *arguments]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_json_ranks_every_pool_and_names_the_chosen() -> None:
    done = pools(*FROM, "--hours", "48", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = {row["pool"]: row for row in document["pools"]}
    assert document["pools"][0]["pool"] == "p4d.24xlarge/us-east-1a/spot"
    assert rows["p4d.24xlarge/us-east-1c/spot"]["flags"] == ["no-discount"]
    assert rows["p4d.24xlarge/us-east-1d/spot"]["flags"] == ["lone-price"]
    assert rows["p4d.24xlarge/us-east-1f/spot"]["cost"] is None
    chosen = document["chosen"]
    assert all(rows[name]["takes_part"] for name in chosen["pools"])
    assert {"us-east-1", "us-west-2"} == {rows[name]["region"] for name in chosen["pools"]}
    assert [source["source"] for source in document["sources"]] == ["prices.csv", "scores.json"]


def test_people_get_a_table_with_ages_and_reasons() -> None:
    done = pools(*FROM, "--hours", "48")
    assert done.returncode == 0, done.stderr
    assert "prices.csv: " in done.stdout
    assert "no-discount" in done.stdout
    assert "chosen: " in done.stdout


def test_the_choice_is_printed_for_the_job_file(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    text = "name: gpt\nrun: {}\nscript: train.py\nexpected_hours: 48\n"
    job.write_text(text.format(tmp_path / "run") + "pools: [{instance_type: p4d.24xlarge}]\n")
    done = pools(str(job), *FROM, "--region", "us-east-1", "--as", "job")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)["pools"]
    assert {pool["instance_type"] for pool in found} == {"p4d.24xlarge"}
    assert {pool["zone"] for pool in found} <= {"us-east-1a", "us-east-1b"}


def test_what_lacks_is_said() -> None:
    nothing = pools("--hours", "48")
    assert (nothing.returncode, "nothing to ask" in nothing.stderr) == (78, True)
    hours = pools(*FROM)
    assert (hours.returncode, "--hours" in hours.stderr) == (78, True)
    unknown = pools(*FROM, "--hours", "48", "--type", "p9.huge")
    assert (unknown.returncode, "p9.huge" in unknown.stderr) == (10, True)
