"""unbroken report against runs made by the real writer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unbroken.journal import Journal, Origin
from unbroken.journal.events import Decided, Notice
from unbroken.store import open_store

Call = Callable[..., tuple[int, str, str]]
JOB = """\
name: small
run: {run}
command: [python, train.py]
prices: {{on_demand: 4.0, spot: 1.0, currency: EUR}}
"""


@pytest.fixture
def run(run_writer: Callable[[str], Any], tmp_path: Path) -> Any:
    """Two attempts and two decisions of a policy."""
    writer = run_writer((tmp_path / "run").as_uri())
    writer.commit(10, {"model/weight": [1.0]})
    writer.append(Notice("ec2", "terminate", 4_000_000_000.0))
    writer.commit(20, {"model/weight": [2.0]})
    writer.end("interrupted", 20)
    journal = Journal.open(open_store(writer.uri))
    journal.decide(Decided("idle", "uniform-progress", "wait", "", {"hours_left": 5.0}), Origin("head", 7))
    journal.decide(
        Decided("on-demand", "uniform-progress", "net", "p4d.24xlarge/us-east-1a/on-demand"), Origin("head", 7)
    )
    writer.claim()
    writer.commit(30, {"model/weight": [3.0]})
    writer.finish(30)
    return writer


def read(call: Call, *arguments: str) -> dict[str, Any]:
    code, out, err = call("report", *arguments, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def test_json_accounts_for_all_of_the_time(run: Any, call: Call) -> None:
    told = read(call, run.uri)
    assert sum(line["seconds"] for line in told["causes"]) == pytest.approx(told["seconds"], abs=1e-6)
    assert told["seconds"] == pytest.approx(told["last_entry_at"] - told["begun_at"], abs=1e-5)
    assert [line["cause"] for line in told["causes"]] == [
        "useful", "stalls", "repeated", "restart", "waiting", "silent", "undurable",
    ]  # fmt: skip
    assert told["finished_step"] == 30
    (cut,) = told["interruptions"]
    assert (cut["attempt"], cut["source"], cut["stop_step"], cut["next_attempt"]) == (1, "ec2", 20, 2)
    assert cut["spare"] > 0


def test_json_has_the_decisions_of_a_policy(run: Any, call: Call) -> None:
    first, second = read(call, run.uri)["decisions"]
    assert (first["action"], first["rule"], first["numbers"]) == ("idle", "wait", {"hours_left": 5.0})
    assert (second["action"], second["pool"]) == ("on-demand", "p4d.24xlarge/us-east-1a/on-demand")


def test_unknown_savings_are_null_and_said_so(run: Any, call: Call) -> None:
    told = read(call, run.uri)
    assert (told["saved"], told["saved_share"], told["on_demand_amount"]) == (None, None, None)
    assert len(told["unknown"]) >= 1
    code, out, _ = call("report", run.uri)
    assert code == 0
    assert "savings against on-demand: unknown" in out
    assert "--on-demand-price" in out


def test_the_on_demand_price_may_come_from_the_job_file(run: Any, call: Call, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(run=run.uri))
    by_option = read(call, run.uri, "--job", str(job))
    assert by_option["currency"] == "EUR"
    assert by_option["on_demand_amount"] == pytest.approx(by_option["on_demand_seconds"] * 4.0 / 3600)
    assert read(call, str(job))["on_demand_amount"] == by_option["on_demand_amount"]
    outranked = read(call, run.uri, "--job", str(job), "--on-demand-price", "8")
    assert outranked["on_demand_amount"] == pytest.approx(2 * by_option["on_demand_amount"])


@pytest.mark.parametrize("columns", [80, 120])
def test_text_fits_the_terminal(run: Any, call: Call, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = call("report", run.uri, "--on-demand-price", "4")
    assert code == 0
    body = [line for line in out.splitlines() if not line.startswith("run ")]
    assert max(len(line) for line in body) <= columns
    assert "…" not in out  # nothing was cut off
    assert "ec2 notice" in out
    for word in ("where it went", "goodput", "Interruptions", "Decisions: 2", "uniform-progress"):
        assert word in out


def test_a_run_without_attempts_has_nothing_to_account_for(call: Call, tmp_path: Path) -> None:
    uri = (tmp_path / "new").as_uri()
    Journal.create(open_store(uri, create=True))
    assert (read(call, uri)["seconds"], read(call, uri)["goodput"]) == (0.0, None)
    code, out, _ = call("report", uri)
    assert (code, "nothing to account for" in out) == (0, True)


def test_where_no_run_is_the_exit_code_says_so(call: Call, tmp_path: Path) -> None:
    assert call("report", str(tmp_path / "none"))[0] == 10
