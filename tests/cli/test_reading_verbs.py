"""ls, show, verify and status against runs made by the real writer, on a folder and on S3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unbroken.journal.events import Note, Notice
from unbroken.store import open_store

TENSORS = {"model/weight": [1.0, 2.0, 3.0], "model/bias": [0.5], "optimizer/step": [7.0]}


@pytest.fixture
def run(run_writer: Callable[[str], Any], store_uri: str) -> Any:
    """Two attempts: one that saved steps 10 and 20 and was interrupted, one that finished at 30."""
    writer = run_writer(store_uri)
    writer.commit(10, {**TENSORS, "model/weight": [0.0, 0.0, 0.0]})
    writer.append(Notice("ec2", "terminate", 2_000_000_000.0))
    writer.append(Note("save-failed", "step 15 was not saved: no space is left", {"step": 15}))
    writer.commit(20, TENSORS)
    writer.end("interrupted", 20)
    writer.claim()
    writer.commit(30, {**TENSORS, "model/weight": [4.0, 5.0, 6.0]})
    writer.finish(30)
    return writer


Call = Callable[..., tuple[int, str, str]]


def read_json(call: Call, *arguments: str, code: int = 0) -> dict[str, Any]:
    ended, out, err = call(*arguments, "--json")
    assert ended == code, err
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def test_ls_names_every_kept_checkpoint_and_the_final_one(run: Any, call: Call) -> None:
    rows = read_json(call, "ls", run.uri)["checkpoints"]
    assert [(row["step"], row["attempt"], row["parent_step"]) for row in rows] == [
        (10, 1, None),
        (20, 1, 10),
        (30, 2, 20),
    ]
    assert [(row["latest"], row["final"]) for row in rows] == [(False, False), (False, False), (True, True)]
    assert [row["size"] for row in rows] == [20, 20, 20]
    code, out, _ = call("ls", run.uri)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.strip()[:1].isdigit()] == ["10", "20", "30"]
    assert out.rstrip().endswith("final")


def test_show_gives_the_newest_checkpoint_with_its_tensors_and_packs(run: Any, call: Call) -> None:
    shown = read_json(call, "show", run.uri)
    assert (shown["step"], shown["attempt"], shown["size"]) == (30, 2, 20)
    tensors = {tensor["name"]: tensor for tensor in shown["tensors"]}
    assert tensors["model/weight"] | {"packs": []} == {
        "name": "model/weight", "dtype": "float32", "shape": [3], "size": 12, "slices": 1, "packs": [],
    }  # fmt: skip
    keys = {pack["key"] for pack in shown["packs"]}
    assert {key for tensor in tensors.values() for key in tensor["packs"]} == keys
    assert len(keys) == 2  # bias and step did not change since the parent, so its pack is used again
    assert shown["groups"] == [
        {"name": "model", "tensors": 2, "size": 16},
        {"name": "optimizer", "tensors": 1, "size": 4},
    ]


def test_show_takes_a_step_and_prints_it_for_people(run: Any, call: Call) -> None:
    assert read_json(call, "show", run.uri, "--step", "10")["step"] == 10
    code, out, _ = call("show", run.uri, "--step", "10")
    assert code == 0
    assert all(word in out for word in ("step 10 of", "model/weight", "float32", "packs/1/"))


def test_show_of_a_step_that_is_not_there_names_the_nearest(run: Any, call: Call) -> None:
    code, _, err = call("show", run.uri, "--step", "19")
    assert code == 10
    assert "no checkpoint of step 19" in err
    assert "step 20" in err


def test_verify_reads_all_kept_checkpoints(run: Any, call: Call) -> None:
    found = read_json(call, "verify", run.uri)
    assert found["sound"] is True
    assert [(one["step"], one["tensors"], one["sound"]) for one in found["checkpoints"]] == [
        (10, 3, True), (20, 3, True), (30, 3, True),
    ]  # fmt: skip
    assert [one["step"] for one in read_json(call, "verify", run.uri, "--step", "20")["checkpoints"]] == [20]


def damage(run: Any) -> str:
    """Flip one bit of the newest pack; gives its key."""
    store = open_store(run.uri)
    key = next(info.key for info in store.list("packs") if "/30-" in info.key)
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, [bytes(data)])
    return str(key)


def test_verify_leaves_with_12_and_names_tensor_and_pack_of_a_flipped_bit(run: Any, call: Call) -> None:
    key = damage(run)
    found = read_json(call, "verify", run.uri, code=12)
    assert [one["sound"] for one in found["checkpoints"]] == [True, True, False]
    (problem,) = found["checkpoints"][2]["problems"]
    assert "model/weight" in problem
    assert key in problem
    code, out, err = call("verify", run.uri)
    assert code == 12
    assert key in out
    assert "1 of 3 checkpoints" in err
    assert "step 30" in err
    assert call("verify", run.uri, "--step", "20")[0] == 0


def test_verify_refuses_all_with_a_step(run: Any, call: Call) -> None:
    assert call("verify", run.uri, "--all", "--step", "20")[0] == 78


def test_status_tells_attempts_durable_step_notices_and_troubles(run: Any, call: Call) -> None:
    found = read_json(call, "status", run.uri)
    assert (found["state"], found["finished_step"]) == ("finished", 30)
    assert (found["durable"]["step"], found["durable"]["attempt"]) == (30, 2)
    assert [(line["restored_step"], line["last_step"], line["cause"]) for line in found["attempts"]] == [
        (0, 20, "interrupted"), (20, 30, "finished"),
    ]  # fmt: skip
    assert [notice["source"] for notice in found["notices"]] == ["ec2"]
    assert [remark["topic"] for remark in found["remarks"]] == ["save-failed"]
    assert found["costs"][0]["currency"] == "USD"
    code, out, _ = call("status", run.uri)
    assert code == 0
    for words in (": finished", "last durable step: 30", "notice to attempt 1 from ec2", "no space is left"):
        assert words in out


def test_status_of_a_run_that_goes_on_names_its_owner(
    run_writer: Callable[[str], Any], call: Call, tmp_path: Path
) -> None:
    run = run_writer(str(tmp_path / "run"))
    assert read_json(call, "status", run.uri)["state"] == "open"
    code, out, _ = call("status", run.uri)
    assert code == 0
    assert "owner: attempt 1 on host" in out
    assert "no checkpoint is durable yet" in out


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_a_run_without_a_checkpoint_is_not_found(
    run_writer: Callable[[str], Any], call: Call, tmp_path: Path, verb: str
) -> None:
    code, _, err = call(verb, run_writer(str(tmp_path / "run")).uri)
    assert code == 10
    assert "no checkpoint yet" in err


def test_ls_of_a_run_without_a_checkpoint_says_so(run_writer: Callable[[str], Any], call: Call, tmp_path: Path) -> None:
    run = run_writer(str(tmp_path / "run"))
    assert call("ls", run.uri)[:2] == (0, "no checkpoint yet\n")
    assert read_json(call, "ls", run.uri)["checkpoints"] == []


@pytest.mark.parametrize("verb", ["ls", "show", "verify", "status"])
def test_where_there_is_no_run_every_verb_leaves_with_10(call: Call, store_uri: str, verb: str) -> None:
    code, out, err = call(verb, store_uri)
    assert (code, out) == (10, "")
    assert "there is no" in err


@pytest.mark.parametrize("verb", ["ls", "show", "verify", "status"])
def test_a_uri_that_is_none_is_a_configuration_error(call: Call, verb: str) -> None:
    code, _, err = call(verb, "s3:///path")
    assert code == 78
    assert "names no S3 bucket" in err


def test_a_newer_format_leaves_with_13(run_writer: Callable[[str], Any], call: Call, tmp_path: Path) -> None:
    run = run_writer(str(tmp_path / "run"))
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**description, "format": 99}))
    code, _, err = call("ls", run.uri)
    assert code == 13
    assert "newer unbroken" in err
