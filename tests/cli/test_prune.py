"""The verb prune on runs made by the real writer, on a folder and on S3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unbroken.checkpoint.maintenance import prune_run
from unbroken.errors import AccessError
from unbroken.journal import Journal, Origin
from unbroken.store import open_store
from unbroken.store.folder import FolderStore
from unbroken.testing import flip_bit

Call = Callable[..., tuple[int, str, str]]


def read_json(call: Call, *arguments: str, code: int = 0) -> dict[str, Any]:
    ended, out, err = call("prune", *arguments, "--json")
    assert ended == code, err
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def live_run(run_writer: Callable[[str], Any], uri: str) -> Any:
    """One attempt that saved every ten steps, and of which a failed save is left."""
    writer = run_writer(uri)
    for step in range(10, 70, 10):
        writer.commit(step, metrics={"loss": [(step, abs(step - 30.0))]})
    writer.journal.store.put("packs/1/70-0-0-0badcafe.safetensors", [b"x" * 1000])
    return writer


@pytest.fixture
def run(run_writer: Callable[[str], Any], store_uri: str) -> Any:
    """The same, ended."""
    writer = live_run(run_writer, store_uri)
    writer.end("interrupted", 60)
    return writer


def objects(uri: str) -> dict[str, int]:
    return {info.key: info.size for info in open_store(uri).list("") if not info.key.startswith("journal/")}


def steps(uri: str) -> list[int]:
    return [record.step for record in Journal.open(open_store(uri)).state.checkpoints]


def test_without_yes_it_shows_and_changes_nothing(run: Any, call: Call) -> None:
    before = objects(run.uri)
    found = read_json(call, run.uri, "--keep", "last=2,every=20,best=loss")
    assert found["keep"] == "last=2,every=20,best=loss:min"
    assert [(row["step"], row["reasons"]) for row in found["kept"]] == [
        (20, ["every=20"]), (30, ["best=loss:min"]), (40, ["every=20"]), (50, ["newest", "last=2"]),
        (60, ["newest", "last=2", "every=20"]),
    ]  # fmt: skip
    assert [row["step"] for row in found["retired"]] == [10]
    assert found["orphans"] == {"objects": 1, "bytes": 1000}
    assert found["objects"] == 1 + 3  # of the retired one: pack, rank record, manifest
    assert (found["done"], found["held"], found["live"]) == (None, None, None)
    code, out, _ = call("prune", run.uri, "--keep", "last=2")
    assert code == 0
    assert "to retire: 4 checkpoints; to delete: 13 objects" in out
    assert "nothing was changed; --yes does it" in out
    assert objects(run.uri) == before
    assert Journal.open(open_store(run.uri)).state.owner.attempt == 1


def test_with_yes_it_does_what_it_showed(run: Any, call: Call) -> None:
    shown = read_json(call, run.uri, "--keep", "last=2")
    before = objects(run.uri)
    done = read_json(call, run.uri, "--keep", "last=2", "--yes")
    assert done["done"] == {"retired": 4, "objects": shown["objects"], "bytes": shown["bytes"]}
    after = objects(run.uri)
    assert sum(before.values()) - sum(after.values()) == shown["bytes"]
    assert len(before) - len(after) == shown["objects"]
    assert steps(run.uri) == [50, 60]
    assert call("verify", run.uri)[0] == 0
    code, out, _ = call("prune", run.uri, "--keep", "last=2", "--yes")
    assert (code, "nothing to retire or delete" in out) == (0, True)
    assert Journal.open(open_store(run.uri)).state.owner.attempt == 2  # the second one had no need to claim


def test_without_keep_only_orphans_go(run: Any, call: Call) -> None:
    done = read_json(call, run.uri, "--yes")
    assert (done["keep"], done["done"]) == (None, {"retired": 0, "objects": 1, "bytes": 1000})
    assert steps(run.uri) == [10, 20, 30, 40, 50, 60]


def test_for_people_it_says_what_was_done(run: Any, call: Call) -> None:
    code, out, _ = call("prune", run.uri, "--keep", "last=2", "--yes")
    assert code == 0
    assert "keep: newest, last=2" in out
    assert out.count("retire\n") + out.count("retire ") == 4
    assert "retired 4 checkpoints, deleted 13 objects" in out


def test_a_run_that_is_being_trained_is_shown_and_left_alone(
    run_writer: Callable[[str], Any], call: Call, store_uri: str
) -> None:
    run = live_run(run_writer, store_uri)
    shown = read_json(call, run.uri, "--keep", "last=2")
    assert shown["live"] == {"attempt": 1, "host": "host"}
    assert (shown["objects"], shown["orphans"]["objects"]) == (0, 0)  # all is the live attempt's own
    code, out, _ = call("prune", run.uri, "--keep", "last=2")
    assert (code, "--yes would be refused" in out) == (0, True)
    before = objects(run.uri)
    code, _, err = call("prune", run.uri, "--keep", "last=2", "--yes")
    assert code == 11
    assert "attempt 1 on host owns the run" in err
    assert "--take-over" in err
    assert objects(run.uri) == before
    run.commit(70)  # it was not fenced


def test_take_over_prunes_what_an_attempt_left_that_died_without_a_word(
    run_writer: Callable[[str], Any], call: Call, store_uri: str
) -> None:
    run = live_run(run_writer, store_uri)
    done = read_json(call, run.uri, "--keep", "last=2", "--yes", "--take-over")
    assert done["done"]["retired"] == 4
    assert steps(run.uri) == [50, 60]
    assert call("verify", run.uri)[0] == 0


def test_a_pruned_run_goes_on_and_its_status_shows_no_attempt_of_the_prune(run: Any, call: Call) -> None:
    assert call("prune", run.uri, "--keep", "last=2", "--yes")[0] == 0
    code, out, _ = call("status", run.uri, "--json")
    found = json.loads(out)
    assert (code, found["state"], found["attempts_without_progress"]) == (0, "interrupted", 0)
    assert [line["attempt"] for line in found["attempts"]] == [1]
    assert "interrupted; start it again" in call("status", run.uri)[1]
    run.claim()
    run.commit(70)
    assert steps(run.uri) == [50, 60, 70]
    assert call("verify", run.uri)[0] == 0
    found = json.loads(call("status", run.uri, "--json")[1])
    assert [(line["attempt"], line["cause"]) for line in found["attempts"]] == [(1, "interrupted"), (3, "")]


def test_a_damaged_manifest_holds_everything_and_leaves_with_12(run: Any, call: Call) -> None:
    flip_bit(open_store(run.uri), run.journal.state.checkpoints[-2].event.manifest, 30)
    before = objects(run.uri)
    shown = read_json(call, run.uri, "--keep", "last=2")
    assert "step 50" in shown["held"]
    assert (shown["retired"], shown["objects"]) == ([], 0)
    assert [row["reasons"] for row in shown["kept"]] == [["held"]] * 3 + [["newest", "last=2"]] * 3
    code, out, err = call("prune", run.uri, "--keep", "last=2", "--yes")
    assert code == 12
    assert "nothing may be retired or deleted" in out
    assert "nothing was deleted" in err
    assert objects(run.uri) == before


def test_a_role_that_may_not_delete_leaves_with_77_and_hides_nothing(
    run_writer: Callable[[str], Any], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = live_run(run_writer, str(tmp_path / "run"))
    run.end("interrupted", 60)

    def denied(self: FolderStore, keys: list[str]) -> None:
        raise AccessError(f"delete of {keys[0]} was denied", kind="denied")

    monkeypatch.setattr(FolderStore, "delete", denied)
    code, _, err = call("prune", run.uri, "--keep", "last=2", "--yes")
    assert (code, "was denied" in err) == (77, True)
    assert steps(run.uri) == [10, 20, 30, 40, 50, 60]
    state = Journal.open(open_store(run.uri)).state
    assert state.owner is not None
    assert state.owner.ended is not None
    assert state.owner.ended.cause == "maintenance"


def test_verify_does_not_call_damaged_what_was_retired_while_it_read(
    run: Any, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unbroken.checkpoint import parse_keep
    from unbroken.cli import reading

    opened = reading.open_run

    def then_pruned(uri: str) -> Journal:
        journal = opened(uri)
        prune_run(open_store(uri), parse_keep("last=2"), Origin("elsewhere", 2))
        return journal

    monkeypatch.setattr(reading, "open_run", then_pruned)
    code, out, _ = call("verify", run.uri, "--json")
    assert code == 0
    assert [one["step"] for one in json.loads(out)["checkpoints"]] == [50, 60]


@pytest.mark.parametrize("keep", ["lats=3", "last=0", "every=soon", "best"])
def test_a_policy_that_is_none_leaves_with_78_and_names_the_piece(run: Any, call: Call, keep: str) -> None:
    code, _, err = call("prune", run.uri, "--keep", keep, "--yes")
    assert code == 78
    assert repr(keep) in err
    assert steps(run.uri) == [10, 20, 30, 40, 50, 60]


def test_where_there_is_no_run_it_leaves_with_10_and_makes_none(call: Call, store_uri: str) -> None:
    assert call("prune", store_uri, "--yes")[0] == 10
    assert call("ls", store_uri)[0] == 10


def test_a_run_without_a_checkpoint_has_nothing_to_prune(
    run_writer: Callable[[str], Any], call: Call, store_uri: str
) -> None:
    run = run_writer(store_uri)
    run.end("crashed", 0)
    code, out, _ = call("prune", run.uri, "--keep", "last=2", "--yes")
    assert code == 0
    assert "nothing to retire or delete" in out
