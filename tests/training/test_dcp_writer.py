"""``dcp.save`` to a run, in one process."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from tests.training.dcp_cases import cause, emptied, everything, same
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import SavePlanner

from unbroken.checkpoint import load_manifest, verify_checkpoint
from unbroken.cli import main
from unbroken.dcp import Reader, Writer
from unbroken.errors import ConfigError, FencedError, StoreError
from unbroken.journal import Journal
from unbroken.store import open_store

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def opened(uri: str) -> Journal:
    return Journal.open(open_store(uri))


def steps(uri: str) -> list[int]:
    return [record.step for record in opened(uri).state.checkpoints]


def refused(state: Any, writer: Writer, **more: Any) -> BaseException:
    with pytest.raises(CheckpointException) as raised:
        dcp.save(state, storage_writer=writer, **more)
    return cause(raised.value)


def test_every_kind_of_value_comes_back_to_the_bit(uri: str) -> None:
    state = everything()
    dcp.save(state, storage_writer=Writer(uri), checkpoint_id="step-10")
    new = emptied(state)
    dcp.load(new, storage_reader=Reader(uri))
    assert same(new, state)


def test_what_is_stored_is_sound_and_no_pickle(uri: str) -> None:
    dcp.save(everything(), storage_writer=Writer(uri), checkpoint_id="step-10")
    journal = opened(uri)
    [record] = journal.state.checkpoints
    assert verify_checkpoint(journal.store, record).problems == []
    assert load_manifest(journal.store, record).format == 1
    for path in Path(uri).rglob("*"):
        if path.is_file():
            with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError)):
                pickle.loads(path.read_bytes())


def test_the_command_reads_it(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Linear(3, 2)
    dcp.save({"model": model.state_dict()}, storage_writer=Writer(uri), checkpoint_id="step-10")
    out = tmp_path / "model.safetensors"
    for words in (["verify", uri], ["show", uri], ["export", uri, "--only", "model", "--to", str(out)]):
        assert command(words) == 0, capsys.readouterr()
    assert "model/weight" in capsys.readouterr().out
    assert same(load_file(out), dict(model.state_dict()))


def command(words: list[str]) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(words)
    return int(leaving.value.code or 0)


@pytest.mark.parametrize(("given", "step"), [("100", 100), ("step-100", 100), ("out/step-7/", 7), (Path("a/s-3"), 3)])
def test_the_step_is_the_number_at_the_end_of_the_id(uri: str, given: Any, step: int) -> None:
    dcp.save({"x": torch.ones(1)}, storage_writer=Writer(uri), checkpoint_id=given)
    assert steps(uri) == [step]
    assert Writer.validate_checkpoint_id(given)


def test_the_step_may_be_the_writers(uri: str) -> None:
    dcp.save({"x": torch.ones(1)}, storage_writer=Writer(uri, step=4))
    assert steps(uri) == [4]


@pytest.mark.parametrize("more", [{}, {"checkpoint_id": "latest"}, {"checkpoint_id": "step-1.backup"}], ids=str)
def test_without_a_step_nothing_is_saved(uri: str, more: dict[str, Any]) -> None:
    error = refused({"x": torch.ones(1)}, Writer(uri), **more)
    assert isinstance(error, ConfigError)
    assert error.kind == "checkpoint-id"
    assert not Path(uri).exists()


def test_one_writer_is_one_attempt(uri: str) -> None:
    with Writer(uri) as writer:
        for step in (1, 2, 3):
            dcp.save({"x": torch.full((2,), float(step))}, storage_writer=writer, checkpoint_id=str(step))
    state = opened(uri).state
    assert list(state.attempts) == [1]
    assert [record.event.parent for record in state.checkpoints[1:]] == [
        record.event.manifest for record in state.checkpoints[:2]
    ]
    assert state.attempts[1].ended is not None
    assert (state.attempts[1].ended.cause, state.attempts[1].ended.last_step) == ("left", 3)


def test_unchanged_tensors_are_not_written_again(uri: str) -> None:
    writer, state = Writer(uri), {"frozen": torch.randn(1000, 100), "trained": torch.zeros(2)}
    for step in (1, 2):
        dcp.save(state, storage_writer=writer, checkpoint_id=str(step))
        state["trained"] += 1
    first, second = opened(uri).state.checkpoints
    assert first.event.written > 400_000 > 10_000 > second.event.written


def test_a_later_writer_fences_the_earlier_one(uri: str) -> None:
    old, new = Writer(uri), Writer(uri)
    dcp.save({"x": torch.ones(1)}, storage_writer=old, checkpoint_id="1")
    dcp.save({"x": torch.ones(1)}, storage_writer=new, checkpoint_id="2")
    assert isinstance(refused({"x": torch.ones(1)}, old, checkpoint_id="3"), FencedError)
    assert steps(uri) == [1, 2]
    old.close()
    dcp.save({"x": torch.ones(1)}, storage_writer=new, checkpoint_id="3")


@pytest.mark.parametrize("step", ["5", "4"])
def test_a_step_that_was_saved_is_never_passed_over_in_silence(uri: str, step: str) -> None:
    writer = Writer(uri)
    dcp.save({"x": torch.ones(1)}, storage_writer=writer, checkpoint_id="5")
    error = refused({"x": torch.zeros(1)}, writer, checkpoint_id=step)
    assert isinstance(error, ConfigError)
    assert error.kind == "step"
    dcp.save({"x": torch.ones(1)}, storage_writer=Writer(uri), checkpoint_id=step)


class Opaque:
    """Something that only a pickle could hold."""


@pytest.mark.parametrize(
    "value", [Opaque(), [1, Opaque()], io.BytesIO(b"x"), lambda: 0], ids=["object", "list", "file", "function"]
)
def test_what_only_a_pickle_could_hold_is_refused_by_its_key(uri: str, value: Any) -> None:
    writer = Writer(uri)
    error = refused({"loader": {"workers": value}, "x": torch.ones(1)}, writer, checkpoint_id="1")
    assert isinstance(error, ConfigError)
    assert "loader.workers" in str(error)
    assert steps(uri) == []
    dcp.save({"x": torch.ones(1)}, storage_writer=writer, checkpoint_id="1")
    assert steps(uri) == [1]


def test_a_sparse_tensor_is_refused_by_its_key(uri: str) -> None:
    error = refused({"model": {"sparse": torch.eye(3).to_sparse()}}, Writer(uri), checkpoint_id="1")
    assert isinstance(error, ConfigError)
    assert "model/sparse" in str(error)


def test_a_planner_that_does_not_flatten_is_served_where_names_stay_whole(uri: str) -> None:
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    state = {"a.weight": torch.randn(3), "b": 5}
    dcp.save(state, storage_writer=Writer(uri), checkpoint_id="1", planner=planner)
    new = emptied(state)
    # torch loses what is no tensor where it flattens ShardedTensors alone.
    load_planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.load(new, storage_reader=Reader(uri), planner=load_planner)
    assert same(new, state)


@pytest.mark.parametrize("value", [{"x": 1}, [torch.ones(2)]], ids=["dict", "list"])
def test_a_planner_that_leaves_containers_whole_is_refused_by_the_key(uri: str, value: Any) -> None:
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    error = refused({"inner": value}, Writer(uri), checkpoint_id="1", planner=planner)
    assert isinstance(error, ConfigError)
    assert "inner" in str(error)


def test_a_planner_that_keeps_its_plans_saves_what_is_there_now(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in dir(SavePlanner):
        if name.startswith("_cached_"):
            monkeypatch.setattr(SavePlanner, name, {})
    writer, state = Writer(uri), {"x": torch.ones(2), "n": 1}
    for step in (1, 2, 3):
        planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
        dcp.save(state, storage_writer=writer, checkpoint_id=str(step), planner=planner)
        state["x"] += 1
        state["n"] += 1
    new = emptied(state)
    dcp.load(new, storage_reader=Reader(uri, step=3))
    assert same(new, {"x": torch.full((2,), 3.0), "n": 3})
    another = Writer(uri)
    planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
    dcp.save(state, storage_writer=another, checkpoint_id="4", planner=planner)
    assert steps(uri) == [1, 2, 3, 4]


def test_saving_without_collectives_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="use_collectives"):
        dcp.save({"x": torch.ones(1)}, storage_writer=Writer(uri), checkpoint_id="1", use_collectives=False)


def test_an_ordered_dict_comes_back_as_torch_nests_it(uri: str) -> None:
    state = {"model": OrderedDict(a=torch.ones(2), b=torch.zeros(1))}
    dcp.save(state, storage_writer=Writer(uri), checkpoint_id="1")
    new = {"model": OrderedDict(a=torch.zeros(2), b=torch.ones(1))}
    dcp.load(new, storage_reader=Reader(uri))
    assert same(new, state)


def test_optimizer_state_through_torchs_own_functions(uri: str) -> None:
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def training(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        return model, torch.optim.AdamW(model.parameters(), lr=0.01 * seed)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.arange(8.0).view(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    one, two = training(1), training(2)
    step(*one)
    model, optimizer = get_state_dict(*one)
    dcp.save({"model": model, "optimizer": optimizer}, storage_writer=Writer(uri), checkpoint_id="1")
    model, optimizer = get_state_dict(*two)
    loaded = {"model": model, "optimizer": optimizer}
    dcp.load(loaded, storage_reader=Reader(uri))
    set_state_dict(*two, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    step(*one)
    step(*two)
    assert same(dict(one[0].state_dict()), dict(two[0].state_dict()))
    assert same(one[1].state_dict(), two[1].state_dict())


@pytest.mark.parametrize("call", ["put", "create"])
def test_a_failing_store_reaches_the_caller_and_the_checkpoint_before_stands(
    uri: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, state = Writer(uri), {f"t{i}": torch.randn(50) for i in range(8)}
    dcp.save(state, storage_writer=writer, checkpoint_id="1")
    before = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in state.values():
        tensor.add_(1)

    def fail(*_: Any, **__: Any) -> Any:
        raise StoreError("the storage is on fire", kind="fault")

    store = writer._session.journal.store
    with monkeypatch.context() as broken:
        broken.setattr(store, call, fail)
        assert isinstance(refused(state, writer, checkpoint_id="2"), StoreError)
    assert steps(uri) == [1]
    new = emptied(state)
    dcp.load(new, storage_reader=Reader(uri))
    assert same(new, before)
    dcp.save(state, storage_writer=writer, checkpoint_id="2")
    assert steps(uri) == [1, 2]
