"""The sampler: nothing lost or repeated, whatever changes between attempts; and only what was handed out counts."""

from __future__ import annotations

import gc
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset

import unbroken
from unbroken.data import ResumableSampler
from unbroken.errors import ConfigError, MismatchError
from unbroken.training.sample_order import samples_at


class Numbers(Dataset):
    """Sample ``i`` is the number ``i``."""

    def __init__(self, length: int = 100) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> int:
        return number


class Broken(Numbers):
    """Fails once, with its tenth sample."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __getitem__(self, number: int) -> int:
        self.asked += 1
        if self.asked == 10:
            raise OSError("the file is away")
        return number


def stream(length: int, seed: int, count: int) -> list[int]:
    """The first samples of the uninterrupted order of a single process."""
    return samples_at(torch.arange(count), length=length, seed=seed, shuffle=True).tolist()


def take(batches, count: int) -> list[int]:
    return [int(number) for _ in range(count) for number in next(batches)]


layouts = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(0, 6))
"""World size, batch size of a rank, and steps."""


class TestOrder:
    @given(st.integers(1, 60), st.integers(0, 9), st.lists(layouts, min_size=1, max_size=5))
    def test_any_sequence_of_layouts_trains_on_the_order_of_one_process(self, length, seed, attempts):
        seen: list[int] = []
        saved = None
        for world_size, batch_size, steps in attempts:
            samplers = [
                ResumableSampler(length, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
            if saved is not None:
                for sampler in samplers:
                    sampler.load_state_dict(json.loads(saved))
            ranks = [sampler.indices() for sampler in samplers]
            for _ in range(steps):
                for batches in ranks:
                    batch = next(batches)
                    assert len(batch) == batch_size
                    seen += batch
            states = {json.dumps(sampler.state_dict()) for sampler in samplers}
            assert len(states) == 1  # a shared object: all ranks have the same state
            saved = states.pop()
            assert samplers[0].consumed == len(seen)
            assert samplers[0].epoch == len(seen) // length
        assert seen == stream(length, seed, len(seen))

    def test_each_epoch_has_each_sample_once_though_batches_cross_its_end(self):
        sampler = ResumableSampler(10, batch_size=4, seed=3)
        seen = take(sampler.indices(), 5)
        assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
        assert sampler.epoch == 2

    def test_blocks_of_the_order_join_without_a_seam(self):
        sampler = ResumableSampler(10_000, batch_size=1000, seed=2, rank=1, world_size=2)
        seen = take(sampler.indices(), 9)
        whole = stream(10_000, 2, 18_000)
        assert seen == [n for step in range(9) for n in whole[step * 2000 + 1000 : step * 2000 + 2000]]

    def test_rank_and_world_size_come_from_the_launcher(self, monkeypatch):
        monkeypatch.setenv("RANK", "2")
        monkeypatch.setenv("WORLD_SIZE", "3")
        sampler = ResumableSampler(100, batch_size=5, shuffle=False)
        assert next(sampler.indices()) == [10, 11, 12, 13, 14]
        assert sampler.consumed == 15

    def test_arguments_outrank_the_launcher(self, monkeypatch):
        monkeypatch.setenv("RANK", "2")
        monkeypatch.setenv("WORLD_SIZE", "3")
        sampler = ResumableSampler(100, batch_size=5, shuffle=False, rank=0, world_size=2)
        assert next(sampler.indices()) == [0, 1, 2, 3, 4]
        assert sampler.consumed == 10

    def test_the_process_group_outranks_the_launcher(self, monkeypatch):
        monkeypatch.setenv("RANK", "2")
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        assert next(ResumableSampler(100, batch_size=5, shuffle=False).indices()) == [5, 6, 7, 8, 9]

    @pytest.mark.parametrize("rank", ["", "3", "-1", "one"])
    def test_an_environment_that_does_not_say_the_rank_is_refused(self, monkeypatch, rank):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "3")
        with pytest.raises(ConfigError, match="RANK"):
            next(ResumableSampler(100, batch_size=5).indices())


@pytest.mark.parametrize("workers", [0, 2])
class TestLoader:
    def options(self, workers: int) -> dict:
        return {"num_workers": workers, "prefetch_factor": 4} if workers else {}

    def test_batches_come_in_the_order(self, workers):
        data = Numbers()
        sampler = ResumableSampler(data, batch_size=7, seed=4)
        batches = iter(sampler.loader(data, **self.options(workers)))
        assert isinstance(first := next(batches), torch.Tensor)
        assert first.tolist() + take(batches, 29) == stream(100, 4, 210)

    def test_only_what_was_handed_out_counts(self, workers):
        """Two workers have eight batches ready by now."""
        sampler = ResumableSampler(100, batch_size=7, seed=4)
        batches = iter(sampler.loader(Numbers(), **self.options(workers)))
        assert sampler.consumed == 0
        for step in range(1, 6):
            next(batches)
            assert sampler.state_dict()["consumed"] == 7 * step
        del batches
        gc.collect()
        assert sampler.consumed == 35

    def test_a_new_iteration_begins_where_a_break_left(self, workers):
        sampler = ResumableSampler(100, batch_size=7, seed=4)
        loader = sampler.loader(Numbers(), **self.options(workers))
        seen = []
        for _ in range(3):
            for number, batch in enumerate(loader):
                seen += batch.tolist()
                if number == 2:
                    break
        assert seen == stream(100, 4, 63)

    def test_a_state_loaded_under_an_iteration_moves_it(self, workers):
        """``iter(loader)`` may stand before ``with run:``, which restores."""
        sampler = ResumableSampler(100, batch_size=7, seed=4)
        batches = iter(sampler.loader(Numbers(), **self.options(workers)))
        next(batches)
        sampler.load_state_dict({**sampler.state_dict(), "consumed": 50})
        assert take(batches, 5) == stream(100, 4, 85)[50:]

    def test_an_older_iteration_ends_with_an_error(self, workers):
        sampler = ResumableSampler(100, batch_size=7, seed=4)
        loader = sampler.loader(Numbers(), **self.options(workers))
        old = iter(loader)
        next(old)
        new = iter(loader)
        with pytest.raises(ConfigError, match="newer one"):
            next(old)
        assert sampler.consumed == 7
        assert next(new).tolist() == stream(100, 4, 14)[7:]

    def test_a_batch_that_raised_is_not_lost(self, workers):
        data = Broken()
        sampler = ResumableSampler(data, batch_size=4, seed=4)
        batches = iter(sampler.loader(data, **self.options(workers)))
        seen = []
        failed = 0
        while len(seen) < 40:
            try:
                seen += next(batches).tolist()
            except OSError:
                failed += 1
                data.asked = 100  # it works again; new workers copy it
        assert failed == 1
        assert seen == stream(100, 4, 40)

    def test_several_batches_make_a_step(self, workers):
        sampler = ResumableSampler(100, batch_size=3, seed=4)
        batches = iter(sampler.loader(Numbers(), **self.options(workers)))
        for step in range(1, 4):
            for _ in range(4):
                next(batches)
            assert sampler.consumed == 12 * step

    def test_the_training_draws_the_same_random_numbers_with_it(self, workers):
        """torch's own DataLoader draws from the global generator each time an iteration begins."""
        before = torch.get_rng_state()
        batches = iter(ResumableSampler(100, batch_size=3).loader(Numbers(), **self.options(workers)))
        next(batches)
        assert torch.equal(torch.get_rng_state(), before)


class Augmented(Numbers):
    """A sample with noise from each global generator."""

    def __getitem__(self, number: int) -> list[float]:
        import random

        import numpy

        return [number, float(torch.rand(())), random.random(), float(numpy.random.rand())]


def test_what_workers_draw_is_the_same_after_a_restart():
    def noise(sampler: ResumableSampler, steps: int) -> list:
        batches = iter(sampler.loader(Augmented(), num_workers=2))
        return [[column.tolist() for column in next(batches)] for _ in range(steps)]

    whole = noise(ResumableSampler(100, batch_size=5, seed=9), 7)
    first = ResumableSampler(100, batch_size=5, seed=9)
    parts = noise(first, 3)
    second = ResumableSampler(100, batch_size=5, seed=9)
    second.load_state_dict(first.state_dict())
    assert parts + noise(second, 4) == whole
    assert len({row[1][0] for row in whole}) == 7  # and other batches draw other numbers


class TestState:
    def test_it_is_plain_numbers(self):
        sampler = ResumableSampler(100, batch_size=3, seed=5)
        assert sampler.state_dict() == {"length": 100, "seed": 5, "shuffle": True, "order": 1, "consumed": 0}

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            ({"length": 99}, "length 99, and the program's length 100"),
            ({"seed": 6}, "seed 6, and the program's seed 5"),
            ({"shuffle": False}, "shuffle False, and the program's shuffle True"),
            ({"order": 2}, "order 2, and the program's order 1"),
            ({"length": 99, "seed": 6}, "length 99, seed 6, and the program's length 100, seed 5"),
            ({"consumed": -1}, "consumed -1"),
            ({"consumed": None}, "consumed None"),
        ],
    )
    def test_another_order_is_refused_by_name(self, other, said):
        sampler = ResumableSampler(100, batch_size=3, seed=5)
        next(sampler.indices())
        with pytest.raises(MismatchError, match=said):
            sampler.load_state_dict({**sampler.state_dict(), **other})
        assert sampler.consumed == 3


class TestRefusals:
    def test_a_data_loader_of_torchs_own_cannot_read_ahead_in_it(self):
        sampler = ResumableSampler(100, batch_size=3)
        for options in ({"batch_sampler": sampler}, {"sampler": sampler}):
            with pytest.raises(ConfigError, match=r"sampler\.loader\(dataset"):
                next(iter(DataLoader(Numbers(), **options)))
        assert sampler.consumed == 0

    @pytest.mark.parametrize(
        "options",
        [
            {"batch_size": 0},
            {"batch_size": 2.5},
            {"batch_size": True},
            {"batch_size": 1, "seed": None},
            {"batch_size": 1, "rank": 0},
            {"batch_size": 1, "world_size": 2},
            {"batch_size": 1, "rank": 2, "world_size": 2},
            {"batch_size": 1, "rank": -1, "world_size": 2},
        ],
    )
    def test_numbers_that_make_no_sense(self, options):
        with pytest.raises(ConfigError):
            ResumableSampler(100, **options)

    @pytest.mark.parametrize("data", [0, [], True])
    def test_no_data(self, data):
        with pytest.raises(ConfigError, match="length of the dataset"):
            ResumableSampler(data, batch_size=1)

    def test_a_dataset_without_a_length(self):
        class Endless(IterableDataset):
            def __iter__(self):
                return iter(())

        with pytest.raises(ConfigError, match="Endless has no length"):
            ResumableSampler(Endless(), batch_size=1)

    def test_another_dataset_than_the_one_that_is_ordered(self):
        with pytest.raises(ConfigError, match="99 samples, and the sampler orders 100"):
            ResumableSampler(100, batch_size=1).loader(Numbers(99))

    @pytest.mark.parametrize(
        "options",
        [
            {"batch_size": 3},
            {"shuffle": True},
            {"drop_last": True},
            {"in_order": False},
            {"prefetch_factor": 2},
            {"x": 1},
        ],
        ids=str,
    )
    def test_options_that_the_sampler_decides_or_torch_refuses(self, options):
        with pytest.raises(ConfigError, match=next(iter(options))):
            ResumableSampler(100, batch_size=1).loader(Numbers(), **options)


class Toy:
    """A training of a few steps over a loader with workers that read ahead."""

    def __init__(self, uri: str) -> None:
        torch.manual_seed(1)
        self.model = torch.nn.Linear(4, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.data = Augmented(23)
        self.sampler = ResumableSampler(self.data, batch_size=4, seed=8)
        self.run = unbroken.Run(
            uri, every=2, state={"model": self.model, "optimizer": self.optimizer, "data": self.sampler}
        )
        self.used: list[int] = []

    def train(self, until: int, at: dict | None = None) -> Toy:
        with self.run:
            batches = iter(self.sampler.loader(self.data, num_workers=2, prefetch_factor=3))
            for step in self.run.steps(until=until):
                for _ in range(2):
                    x = torch.stack([column.float() for column in next(batches)], dim=1)
                    self.used += x[:, 0].int().tolist()
                    (self.model(torch.nn.functional.dropout(x, 0.2)).square().mean() / 2).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                if at and step in at:
                    at[step]()
        return self

    def weights(self) -> list[float]:
        return [x for parameter in self.model.parameters() for x in parameter.detach().flatten().tolist()]


@pytest.mark.parametrize("stop_at", [0, 4])
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(uri, tmp_path, interrupt, stop_at):
    truth = Toy(str(tmp_path / "truth")).train(9)
    first = Toy(uri)
    with pytest.raises(unbroken.Interrupted):
        first.train(9, {stop_at: interrupt})
    second = Toy(uri).train(9)
    assert len(first.used) == 8 * (stop_at + 1)
    assert first.used + second.used == truth.used == stream(23, 8, 72)
    assert second.weights() == truth.weights()


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 with torch 2.13
def test_torchdatas_loader_is_a_part_of_the_state_on_one_rank(uri, interrupt):
    """For one rank; its state is that rank's own and fits no other number of them."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def train(at: dict | None = None) -> list[int]:
        model = torch.nn.Linear(1, 1)
        loader = stateful(Numbers(40), batch_size=4, num_workers=2, shuffle=False)
        used = []
        with unbroken.Run(uri, every=100, state={"model": model, "loader": loader}) as run:
            batches = iter(loader)
            for step in run.steps(until=8):
                used += next(batches).tolist()
                if at and step in at:
                    at[step]()
        return used

    with pytest.raises(unbroken.Interrupted) as stopped:
        train({2: interrupt})
    assert "step 3 is durable" in str(stopped.value)
    assert train() == list(range(12, 32))
