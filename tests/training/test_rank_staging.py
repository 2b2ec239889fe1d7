"""Parts of sharded tensors are staged as any tensor is: while the next step runs, or not at all where one moved."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from unbroken.checkpoint import HostState
from unbroken.clock import SYSTEM_CLOCK
from unbroken.link.arena import SlotOwner, read_slot
from unbroken.training.capture import capture
from unbroken.training.objects import state_objects
from unbroken.training.overlap import SnapshotSpoiled, deferrable, expected_growth, watched
from unbroken.training.ranks import Ranks
from unbroken.training.staging import StagingArea

RANKS = Ranks(1, 4)
OWNER = SlotOwner("uri", 1, "claim")


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=RANKS.rank, world_size=RANKS.world_size)
    yield
    dist.destroy_process_group()


class Training:
    """A sharded, a replicated and a plain parameter; and an optimizer with state of each."""

    def __init__(self) -> None:
        mesh = init_device_mesh("cpu", (4,))
        self.model = torch.nn.Module()
        for name, placement in (("cut", Shard(0)), ("alike", Replicate())):
            tensor = distribute_tensor(torch.randn(6, 5), mesh, [placement], src_data_rank=None)
            self.model.register_parameter(name, torch.nn.Parameter(tensor))
        self.model.plain = torch.nn.Parameter(torch.randn(3))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, foreach=False)
        self.objects = state_objects({"model": self.model, "optimizer": self.optimizer})

    def step(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()


@pytest.fixture
def training() -> Training:
    training = Training()
    training.step()
    return training


class Bench:
    """A staging area whose copying thread goes on when ``go`` is set."""

    def __init__(self, training: Training) -> None:
        self.go = threading.Event()
        self.area = StagingArea(
            say=lambda _: None,
            clock=SYSTEM_CLOCK,
            worth_deferring=0,
            ranks=RANKS,
            gate=lambda: assert_(self.go.wait(60)),
        )
        self.area.prepare(training.objects)
        self.done = threading.Event()
        self.outcome: HostState | Exception | None = None
        self.captured = capture(training.objects, RANKS)
        self.slot = self.area.take()
        assert self.slot is not None
        self.area.stage(self.slot, self.captured, self._state, OWNER, self._told)

    def _state(self, tensors, stall) -> HostState:
        return HostState(
            3, self.captured.tree, tensors, rank=1, world_size=4, local=self.captured.local,
            shared=self.captured.shared,
        )  # fmt: skip

    def _told(self, outcome: HostState | Exception) -> None:
        self.outcome = outcome
        self.done.set()

    def finish(self) -> HostState | Exception | None:
        self.go.set()
        assert self.done.wait(60)
        return self.outcome


def assert_(truth: bool) -> None:
    assert truth


@pytest.fixture
def bench(training) -> Iterator[Bench]:
    one = Bench(training)
    yield one
    one.go.set()
    one.area.close(60)


def test_a_slot_holds_parts_as_of_the_boundary_and_says_which(training, bench):
    before = {name: tensor.clone() for name, tensor in bench.captured.tensors.items()}
    assert not bench.done.is_set()
    stepping = threading.Thread(target=training.step)
    stepping.start()
    bench.finish()
    stepping.join(60)
    found = read_slot(bench.slot.descriptor)
    assert found is not None
    owner, state = found
    assert (owner, state.rank, state.world_size) == (OWNER, 1, 4)
    assert state.local == bench.captured.local
    assert state.shared == bench.captured.shared
    assert set(state.local) == {"rng"}
    assert {each.name: bytes(each.data) for each in state.tensors} == {
        name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, tensor in before.items()
    }
    cut = next(each for each in state.tensors if each.name == "model/cut")
    assert (cut.shape, cut.place, cut.tensor_shape) == ((2, 5), (2, 0), (6, 5))
    assert not torch.equal(before["model/cut"], training.model.cut.to_local().detach())


@pytest.mark.parametrize("how", ["whole", "part"])
def test_a_change_of_a_sharded_tensor_or_of_its_part_spoils_the_snapshot(training, bench, how):
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "whole": lambda each: each.mul_(2), "part": lambda each: each.to_local().mul_(2)
    }  # fmt: skip
    with torch.no_grad():
        changes[how](training.model.cut)
    found = bench.finish()
    assert isinstance(found, SnapshotSpoiled)
    assert "model/cut" in found.message


@pytest.mark.parametrize("how", ["whole", "part"])
def test_the_same_of_an_optimizer_s_state(training, bench, how):
    moment = training.optimizer.state[training.model.cut]["exp_avg"]
    (moment if how == "whole" else moment.to_local()).add_(1)
    found = bench.finish()
    assert isinstance(found, SnapshotSpoiled)


def test_all_parts_that_the_optimizer_changes_are_copied_later(training):
    captured = capture(training.objects, RANKS)
    later = deferrable(captured.tensors, [training.optimizer], smallest=0)
    assert set(later) == {name for name in captured.tensors if not name.startswith("rank1/")}
    assert set(watched(later, [training.optimizer])) == {
        name for name in later if "cut" in name or "alike" in name or "/0/exp" in name or "/1/exp" in name
    }


def test_a_fresh_optimizer_s_growth_is_what_this_rank_will_stage():
    training = Training()
    ranks = [Ranks(rank, 4) for rank in range(4)]
    before = {name: tensor.nbytes for name, tensor in capture(training.objects, RANKS).tensors.items()}
    expected = expected_growth(training.objects, RANKS)
    training.step()
    after = {name: tensor.nbytes for name, tensor in capture(training.objects, RANKS).tensors.items()}
    grown = {name: size for name, size in after.items() if name not in before and not name.endswith("/step")}
    assert expected == sum(grown.values())
    assert expected_growth(training.objects, RANKS) == 0
    plain = state_objects({"optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.zeros(5)) for _ in range(20)])})
    assert sum(expected_growth(plain, rank) for rank in ranks) == expected_growth(plain) == 20 * 5 * 4 * 2
