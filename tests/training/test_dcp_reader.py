"""``dcp.load`` from a run, in one process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.training.dcp_cases import cause, emptied, everything, same
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

import unbroken
from unbroken.checkpoint import load_manifest
from unbroken.dcp import Reader, Writer
from unbroken.errors import ConfigError, DamagedError, MismatchError, NotFoundError
from unbroken.journal import Journal
from unbroken.store import open_store
from unbroken.testing import flip_bit

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


@pytest.fixture
def three(uri: str) -> str:
    """A run with the checkpoints 1, 2 and 3 of a tensor that holds the step."""
    with Writer(uri) as writer:
        for step in (1, 2, 3):
            dcp.save({"x": torch.full((4,), float(step)), "n": step}, storage_writer=writer, checkpoint_id=str(step))
    return uri


def loaded(reader: Reader, **more: Any) -> int:
    state: dict[str, Any] = {"x": torch.zeros(4), "n": 0}
    dcp.load(state, storage_reader=reader, **more)
    assert same(state["x"], torch.full((4,), float(state["n"])))
    return int(state["n"])


def failure(state: dict[str, Any], reader: Reader, **more: Any) -> BaseException:
    with pytest.raises(CheckpointException) as raised:
        dcp.load(state, storage_reader=reader, **more)
    return cause(raised.value)


def damage(uri: str, step: int, kind: str) -> str:
    """Flip a bit of a checkpoint; what it was in."""
    store = open_store(uri)
    [record] = [each for each in Journal.open(store).state.checkpoints if each.step == step]
    if kind == "manifest":
        flip_bit(store, record.event.manifest, 10)
        return record.event.manifest
    pack = load_manifest(store, record).packs[-1]
    flip_bit(store, pack.key, pack.size - 1)
    return pack.key


def test_the_newest_is_loaded_or_the_one_that_was_asked_for(three: str) -> None:
    assert loaded(Reader(three)) == 3
    assert loaded(Reader(three, step=1)) == 1
    reader = Reader(three, step=1)
    assert loaded(reader, checkpoint_id="out/step-2") == 2
    assert Reader(three).steps() == [1, 2, 3]


def test_there_is_nothing_in_an_empty_run(uri: str) -> None:
    assert isinstance(failure({"x": torch.zeros(1)}, Reader(uri)), NotFoundError)
    assert Reader(uri).steps() == []
    Journal.create(open_store(uri, create=True))
    error = failure({"x": torch.zeros(1)}, Reader(uri))
    assert isinstance(error, NotFoundError)
    assert error.kind == "checkpoint"


def test_a_step_that_is_not_there_is_said(three: str) -> None:
    assert isinstance(failure({"x": torch.zeros(4)}, Reader(three, step=9)), NotFoundError)
    assert isinstance(failure({"x": torch.zeros(4)}, Reader(three), checkpoint_id="latest"), ConfigError)


def test_a_run_that_is_not_there_is_said_to_whoever_looks_into_its_metadata(uri: str) -> None:
    metadata = Reader(uri).read_metadata()
    for look in (list, len, lambda each: each["x"], lambda each: "x" in each, lambda each: each.items()):
        with pytest.raises(NotFoundError):
            look(metadata.state_dict_metadata)


def test_a_flipped_bit_in_a_pack_reaches_the_user_with_the_way_out(three: str) -> None:
    key = damage(three, 3, "pack")
    error = failure({"x": torch.zeros(4), "n": 0}, Reader(three))
    assert isinstance(error, DamagedError)
    assert key in error.message
    assert "step=2" in error.hint
    assert loaded(Reader(three, step=2)) == 2


def test_a_damaged_manifest_is_passed_over_for_the_one_before(three: str, caplog: pytest.LogCaptureFixture) -> None:
    damage(three, 3, "manifest")
    with caplog.at_level(logging.WARNING, logger="unbroken"):
        assert loaded(Reader(three)) == 2
    assert "step 3 is damaged" in caplog.text
    assert isinstance(failure({"x": torch.zeros(4), "n": 0}, Reader(three, step=3)), DamagedError)


def test_where_all_are_damaged_nothing_is_loaded(three: str) -> None:
    for step in (1, 2, 3):
        damage(three, step, "manifest")
    error = failure({"x": torch.zeros(4), "n": 0}, Reader(three))
    assert isinstance(error, DamagedError)
    assert error.kind == "all-damaged"


def test_a_subset_is_loaded_and_the_rest_is_not_read(uri: str) -> None:
    state = everything()
    dcp.save(state, storage_writer=Writer(uri), checkpoint_id="1")
    new = {"model": {"weight": torch.zeros(5, 3)}}
    dcp.load(new, storage_reader=Reader(uri))
    assert same(new, {"model": {"weight": state["model"]["weight"]}})


def test_what_the_checkpoint_lacks_is_refused_unless_a_part_will_do(three: str) -> None:
    state = {"x": torch.zeros(4), "more": torch.full((2,), 9.0)}
    error = failure(state, Reader(three))
    assert "more" in str(error)
    dcp.load(state, storage_reader=Reader(three), planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    assert same(state, {"x": torch.full((4,), 3.0), "more": torch.full((2,), 9.0)})


def test_another_shape_is_refused(three: str) -> None:
    assert "x" in str(failure({"x": torch.zeros(5)}, Reader(three)))


def test_tensors_are_loaded_in_place_whatever_their_memory_is_like(uri: str) -> None:
    source = torch.randn(4, 6)
    dcp.save({"x": source}, storage_writer=Writer(uri), checkpoint_id="1")
    for target in (torch.zeros(4, 6), torch.zeros(6, 4).t(), torch.zeros(4, 9)[:, 2:8], torch.zeros(5, 6)[1:]):
        address = target.data_ptr()
        state = {"x": target}
        dcp.load(state, storage_reader=Reader(uri))
        assert state["x"] is target
        assert target.data_ptr() == address
        assert same(target, source)


def test_another_element_type_is_converted_as_torch_does(uri: str) -> None:
    source = torch.randn(4)
    dcp.save({"x": source}, storage_writer=Writer(uri), checkpoint_id="1")
    state = {"x": torch.zeros(4, dtype=torch.bfloat16)}
    dcp.load(state, storage_reader=Reader(uri))
    assert same(state["x"], source.bfloat16())


def test_large_states_are_read_in_batches(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbroken.training.dcp_opened._SCRATCH", 100)
    state = {f"t{i}": torch.randn(6, 7) for i in range(5)}
    dcp.save(state, storage_writer=Writer(uri), checkpoint_id="1")
    new = {name: torch.zeros(7, 6).t() for name in state}
    dcp.load(new, storage_reader=Reader(uri))
    assert all(same(new[name], state[name]) for name in state)


def test_a_state_is_built_from_the_metadata_alone(uri: str) -> None:
    state = {"model": {"w": torch.randn(3), "list": [torch.ones(2), {"deep": torch.zeros(1)}]}, "n": 5}
    dcp.save(state, storage_writer=Writer(uri), checkpoint_id="1")
    metadata = Reader(uri).read_metadata()
    assert metadata.planner_data["model.list.1.deep"] == ("model", "list", 1, "deep")
    assert isinstance(metadata.state_dict_metadata["n"], BytesStorageMetadata)
    described = metadata.state_dict_metadata["model.w"]
    assert isinstance(described, TensorStorageMetadata)
    assert (described.size, described.properties.dtype) == (torch.Size([3]), torch.float32)
    new: dict[str, Any] = {}
    dcp.state_dict_loader._load_state_dict(
        new, storage_reader=Reader(uri), no_dist=True, planner=_EmptyStateDictLoadPlanner()
    )
    assert same(new, state)


def test_what_run_saved_is_loaded_by_its_names(uri: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    with unbroken.CheckpointManager(uri) as manager:
        model(torch.ones(3)).sum().backward()
        optimizer.step()
        manager.save(7, {"model": model, "optimizer": optimizer}).wait(60)
    new = {"model": emptied(dict(model.state_dict())), "optimizer": emptied(optimizer.state_dict())}
    dcp.load(new, storage_reader=Reader(uri, step=7))
    assert same(new["model"], dict(model.state_dict()))
    # torch writes the numbers of parameters as text.
    assert same({int(key): part for key, part in new["optimizer"]["state"].items() if isinstance(key, str)} or
                new["optimizer"]["state"], optimizer.state_dict()["state"])  # fmt: skip
    assert same(new["optimizer"]["param_groups"], optimizer.state_dict()["param_groups"])


def test_what_a_writer_saved_is_restored_by_a_manager(uri: str) -> None:
    model = torch.nn.Linear(3, 2)
    dcp.save({"model": model.state_dict()}, storage_writer=Writer(uri), checkpoint_id="5")
    new = torch.nn.Linear(3, 2)
    with unbroken.CheckpointManager(uri) as manager:
        assert manager.restore({"model": new}) == 5
    assert same(dict(new.state_dict()), dict(model.state_dict()))


def test_ranks_that_chose_differently_are_refused(three: str) -> None:
    one, two = Reader(three, step=1), Reader(three, step=2)
    plans = []
    for reader in (one, two):
        reader.read_metadata()
        plans.append(reader.prepare_local_plan(dcp.LoadPlan([])))
    assert one.prepare_global_plan(plans[:1]) == plans[:1]
    with pytest.raises(MismatchError, match=r"rank 0 found .* rank 1"):
        one.prepare_global_plan(plans)


def test_a_reader_writes_nothing(three: str) -> None:
    before = {path: path.read_bytes() for path in Path(three).rglob("*") if path.is_file()}
    loaded(Reader(three))
    assert {path: path.read_bytes() for path in Path(three).rglob("*") if path.is_file()} == before
