"""Wrappers around a model leave no trace in names, in new checkpoints and in those that were saved with them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from tests.training.saved import bits, objects_of, save, trained
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from unbroken.checkpoint import load_manifest
from unbroken.errors import ConfigError, MismatchError
from unbroken.journal import Journal
from unbroken.store import open_store
from unbroken.training.capture import capture
from unbroken.training.in_place import InPlaceRestore
from unbroken.training.objects import StateObject, state_objects
from unbroken.training.wrappers import bare, without_prefixes

COMPILES = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
"""What torch's own compiler says of torch."""


@pytest.fixture
def group():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@COMPILES
def test_names_are_those_of_the_bare_model_whatever_stands_around_it(group):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    expected = capture(state_objects({"model": model})).tree["model"]
    for wrapped in (parallel, torch.compile(model), torch.compile(parallel)):
        assert wrapped is not model
        (item, _) = state_objects({"model": wrapped})
        assert item.value is bare(wrapped) is model
        assert capture([item]).tree["model"] == expected


def test_fsdp_s_first_version_is_refused_and_told_the_second(group):
    model = torch.nn.Sequential(FullyShardedDataParallel(torch.nn.Linear(2, 2), device_id=torch.device("cpu")))
    with pytest.raises(ConfigError, match="FullyShardedDataParallel") as caught:
        state_objects({"model": model})
    assert "fully_shard" in caught.value.hint


def restored(uri: str, state: dict[str, object]) -> None:
    journal = Journal.open(open_store(uri))
    record = journal.state.checkpoints[-1]
    manifest = load_manifest(journal.store, record)
    with InPlaceRestore(journal.store, journal.state, objects_of(state)) as work:
        work.apply(manifest, work.load(record, manifest))


class Holder:
    """Saves what it is given, under names of its own choice."""

    def __init__(self, state: dict[str, object]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, object]:
        return self.state

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.state = state


@COMPILES
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_a_checkpoint_saved_with_a_wrapper_s_names_is_loaded_by_the_bare_model(uri, prefix):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    save(uri, {"model": Holder({f"{prefix}{name}": value for name, value in model.state_dict().items()})})
    fresh = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    restored(uri, {"model": torch.compile(fresh)})
    assert {name: value.tolist() for name, value in fresh.state_dict().items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }


def test_other_names_are_not_bent_until_they_fit(uri):
    save(uri, {"model": Holder({"module.other": torch.zeros(2)})})
    with pytest.raises(MismatchError, match=r"module\.other is only in the checkpoint"):
        restored(uri, {"model": torch.nn.Linear(3, 3)})


def test_a_model_with_a_part_of_that_name_keeps_it():
    model = torch.nn.ModuleDict({"module": torch.nn.Linear(1, 1)})
    state = model.state_dict()
    assert without_prefixes(state, state) is state


def test_the_state_of_one_process_is_read_as_before(uri):
    state = trained(1)
    save(uri, state)
    other = trained(2)
    restored(uri, other)
    assert bits(other) == bits(state)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 under torch 2.13
def test_data_loaders_with_a_state_are_each_rank_s_own_and_others_as_named():
    from torchdata.stateful_dataloader import StatefulDataLoader

    state = {"loader": StatefulDataLoader([1, 2]), "holder": Holder({}), "model": torch.nn.Linear(1, 1)}
    mine = {item.name for item in state_objects(state) if item.per_rank}
    assert mine == {"loader", "rng"}
    assert {item.name for item in state_objects(state, ["holder"]) if item.per_rank} == {"loader", "rng", "holder"}
    with pytest.raises(ConfigError, match="'hodler'") as caught:
        state_objects(state, per_rank=("hodler",))
    assert caught.value.kind == "per-rank"
    assert all(isinstance(item, StateObject) for item in state_objects(state))
