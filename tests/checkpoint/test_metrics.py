"""Logged values: each step once, in order, along the chain of parents."""

from __future__ import annotations

import json
import math

import pytest
from tests.checkpoint.conftest import Attempt

from unbroken.checkpoint import CheckpointWriter, Metrics, read_metrics
from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.metrics import encode_metrics, metrics_between, read_metrics_object
from unbroken.errors import DamagedError, FormatError
from unbroken.journal import CheckpointRecord, Journal, Origin
from unbroken.journal.events import CheckpointCommitted, CheckpointRetired
from unbroken.store import Store
from unbroken.testing import truncate


def losses(first: int, last: int, by: str) -> Metrics:
    """Values that tell who logged them."""
    return {"loss": [(step, hash_of(step, by)) for step in range(first, last + 1)]}


def hash_of(step: int, by: str) -> float:
    return step + ord(by) / 1000


def curve(store: Store) -> Metrics:
    journal = Journal.open(store)
    return read_metrics(store, journal.state, journal.state.checkpoints[-1])


def test_the_curve_is_whole_across_attempts_and_repeated_steps_count_once(store: Store) -> None:
    first = Attempt(store)
    first.save(10, {"w": b"1"}, losses(1, 10, "a"))
    first.save(20, {"w": b"2"}, losses(1, 20, "a"))  # what the parent holds is left out
    second = Attempt(store)
    second.restore()
    second.save(30, {"w": b"3"}, losses(21, 30, "b"))
    assert curve(store) == {"loss": losses(1, 20, "a")["loss"] + losses(21, 30, "b")["loss"]}


def test_the_curve_leaves_out_what_was_fallen_back_past(store: Store) -> None:
    first = Attempt(store)
    first.save(10, {"w": b"1"}, losses(1, 10, "a"))
    first.save(20, {"w": b"2"}, losses(11, 20, "a"))
    event = first.save(30, {"w": b"3"}, losses(21, 30, "a"))
    truncate(store, event.manifest, 5)
    second = Attempt(store)
    restored = second.restore()
    assert restored is not None
    assert restored.step == 20
    second.save(25, {"w": b"4"}, losses(21, 25, "b"))
    third = Attempt(store)
    third.restore()
    third.save(35, {"w": b"5"}, losses(26, 35, "c"))
    parts = losses(1, 20, "a"), losses(21, 25, "b"), losses(26, 35, "c")
    assert curve(store) == {"loss": [point for part in parts for point in part["loss"]]}


def test_a_checkpoint_without_logged_values_has_no_object_and_breaks_no_chain(store: Store) -> None:
    attempt = Attempt(store)
    attempt.save(1, {"w": b"1"}, {"loss": [(1, 1.0)]})
    assert attempt.save(2, {"w": b"2"}, {"loss": [(1, 1.0)]}).metrics == ""
    attempt.save(3, {"w": b"3"}, {"accuracy": [(3, 0.5)]})
    assert curve(store) == {"loss": [(1, 1.0)], "accuracy": [(3, 0.5)]}


def test_retired_checkpoints_stay_in_the_curve(folder_store: Store) -> None:
    attempt = Attempt(folder_store)
    event = attempt.save(1, {"w": b"1"}, {"loss": [(1, 1.0)]})
    attempt.save(2, {"w": b"2"}, {"loss": [(2, 2.0)]})
    attempt.journal.append(CheckpointRetired(event.manifest, 1), Origin("host", 1), attempt.lease)
    assert curve(folder_store) == {"loss": [(1, 1.0), (2, 2.0)]}


def test_a_run_may_log_before_its_first_step(folder_store: Store) -> None:
    Attempt(folder_store).save(1, {"w": b"1"}, {"loss": [(0, 9.0), (1, 1.0)]})
    assert curve(folder_store) == {"loss": [(0, 9.0), (1, 1.0)]}


def test_values_keep_their_bits(folder_store: Store) -> None:
    values = [0.1, -0.0, math.inf, -math.inf, 5e-324, 3, 2**60, 1e16]
    logged: Metrics = {"v": list(enumerate(values, start=1)), "nan": [(2, math.nan)]}
    Attempt(folder_store).save(len(values), {"w": b"1"}, logged)
    found = curve(folder_store)
    assert [(repr(value), type(value)) for _, value in found["v"]] == [(repr(value), type(value)) for value in values]
    assert math.isnan(found["nan"][0][1])


def test_only_what_lies_between_two_checkpoints_is_chosen() -> None:
    logged: Metrics = {"a": [(1, 1.0), (2, 2.0), (3, 3.0)], "b": [(1, 1.0)]}
    assert metrics_between(logged, 1, 2) == {"a": [(2, 2.0)]}


def committed(attempt: Attempt, data: bytes, parent: str = "") -> CheckpointRecord:
    """A commit that names these bytes as its logged values."""
    attempt.store.put("metrics/x.json", [data])
    event = CheckpointCommitted(1, "manifests/x.json", "", 0, 0, parent, "metrics/x.json", sha256(data))
    attempt.journal.append(event, Origin("host", 1), attempt.lease)
    return attempt.journal.state.checkpoints[-1]


def test_logged_values_that_are_missing_or_changed_are_damage(store: Store) -> None:
    attempt = Attempt(store)
    event = attempt.save(1, {"w": b"1"}, {"loss": [(1, 1.0)]})
    record = attempt.journal.state.checkpoints[-1]
    store.put(event.metrics, [encode_metrics({"loss": [(1, 2.0)]})])
    for kind in ("sha256", "missing"):
        with pytest.raises(DamagedError) as caught:
            read_metrics(store, attempt.journal.state, record)
        assert caught.value.kind == kind
        assert event.metrics in caught.value.message
        store.delete([event.metrics])


@pytest.mark.parametrize(
    ("document", "error", "kind"),
    [
        ({"format": 2, "values": 7}, FormatError, "newer-format"),
        ({"format": 1, "values": {"loss": [[1, {"$later": 1}]]}}, FormatError, "tag"),
        ({"format": 1, "values": {"loss": [[1, "high"]]}}, FormatError, "metrics"),
        ({"values": {}}, DamagedError, "no-format"),
        ({"format": 1}, DamagedError, "metrics"),
        ({"format": 1, "values": {"loss": [[1]]}}, DamagedError, "metrics"),
        ({"format": 1, "values": {"loss": [["1", 1.0]]}}, DamagedError, "metrics"),
        ([], DamagedError, "no-format"),
    ],
)
def test_committed_bytes_that_are_no_logged_values_are_told_apart(
    folder_store: Store, document: object, error: type[Exception], kind: str
) -> None:
    record = committed(Attempt(folder_store), json.dumps(document).encode())
    with pytest.raises(error) as caught:
        read_metrics_object(folder_store, record)
    assert caught.value.kind == kind  # type: ignore[attr-defined]


@pytest.mark.parametrize("parent", ["manifests/x.json", "manifests/nowhere.json"])
def test_a_chain_that_leads_nowhere_or_in_a_circle_is_damage(folder_store: Store, parent: str) -> None:
    attempt = Attempt(folder_store)
    record = committed(attempt, encode_metrics({"loss": [(1, 1.0)]}), parent)
    with pytest.raises(DamagedError) as caught:
        read_metrics(folder_store, attempt.journal.state, record)
    assert caught.value.kind == "parent"
    assert parent in caught.value.message


def test_a_writer_without_a_parent_begins_a_new_curve(folder_store: Store) -> None:
    Attempt(folder_store).save(5, {"w": b"1"}, losses(1, 5, "a"))
    second = Attempt(folder_store)
    assert isinstance(second.writer, CheckpointWriter)
    second.save(3, {"w": b"1"}, losses(1, 3, "b"))
    assert curve(folder_store) == losses(1, 3, "b")
