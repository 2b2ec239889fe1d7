"""Workers of a DataLoader: they outlive signals to their group, end with their trainer, see the program's dataset."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from unbroken.data import ResumableSampler
from unbroken.journal import Journal
from unbroken.store import open_store
from unbroken.training.data_workers import SHIELDED, PlacedBatch, RepeatableDataset, held_back

_DEADLINE = 90.0

_SCRIPT = """
import os, sys, time, signal, torch, unbroken
from unbroken.data import ResumableSampler

class Pids(torch.utils.data.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, number):
        return os.getpid()

class Stuck(Pids):
    def __getitem__(self, number):
        if number >= 4:
            time.sleep(600)
        return os.getpid()

def said(batches):
    print("workers", *sorted({int(next(batches)) for _ in range(4)}), flush=True)

if __name__ == "__main__":
"""


class Trainer:
    """A process of its own session, whose script says its workers in its first line."""

    def __init__(self, path: Path, body: str) -> None:
        path.write_text(_SCRIPT + textwrap.indent(textwrap.dedent(body), "    "))
        self.process = subprocess.Popen(
            [sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        line = self.process.stdout.readline().split()
        assert line[:1] == ["workers"], self.process.communicate()
        self.workers = [psutil.Process(int(pid)) for pid in line[1:]]

    def end(self) -> tuple[int, str]:
        """Exit status and what it wrote, once it has ended."""
        out, err = self.process.communicate(timeout=_DEADLINE)
        return self.process.returncode, out + err

    def clear(self) -> None:
        for worker in self.workers:
            if worker.is_running():
                worker.kill()
        self.process.kill()
        self.process.communicate(timeout=_DEADLINE)


@pytest.fixture
def trainer(tmp_path) -> Iterator[Callable[[str], Trainer]]:
    started: list[Trainer] = []

    def start(body: str) -> Trainer:
        started.append(Trainer(tmp_path / "train.py", body))
        return started[-1]

    yield start
    for one in started:
        one.clear()


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_sigterm_for_the_whole_group_lets_the_loop_finish_its_step_and_save(trainer, uri, context):
    """What torchrun does, and a shell: workers that die of it would take the step, and its save, with them."""
    trained = trainer(f"""
        data = Pids()
        sampler = ResumableSampler(data, batch_size=1)
        with unbroken.Run({uri!r}, every=100, state={{"model": torch.nn.Linear(1, 1), "data": sampler}}) as run:
            batches = iter(sampler.loader(data, num_workers=2, multiprocessing_context={context!r}))
            for step in run.steps(until=3):
                said(batches)
                while not run._signals.received:
                    time.sleep(0.01)
                for _ in range(30):  # beyond all that was loaded ahead
                    next(batches)
    """)
    os.killpg(trained.process.pid, signal.SIGTERM)
    status, text = trained.end()
    assert status == 75, text
    (checkpoint,) = Journal.open(open_store(uri)).state.checkpoints
    assert checkpoint.step == 1
    assert not any(worker.is_running() for worker in trained.workers)


def test_a_sigint_for_the_whole_group_leaves_the_workers_to_their_trainer(trainer):
    trained = trainer("""
        batches = iter(ResumableSampler(1000, batch_size=1).loader(Pids(), num_workers=2))
        try:
            said(batches)
            time.sleep(600)
        except KeyboardInterrupt:
            for _ in range(30):
                next(batches)
            print("went on")
    """)
    os.killpg(trained.process.pid, signal.SIGINT)
    status, text = trained.end()
    assert (status, text) == (0, "went on\n")


@pytest.mark.parametrize("ending", ["pass", "sys.exit(75)", "raise ValueError('over')"])
def test_a_trainer_that_ends_takes_along_workers_that_hang(trainer, ending):
    """multiprocessing sends them SIGTERM and waits for ever: a shield without a release would hang the trainer."""
    trained = trainer(f"""
        batches = iter(ResumableSampler(1000, batch_size=1, shuffle=False).loader(Stuck(), num_workers=2))
        said(batches)
        {ending}
    """)
    status, text = trained.end()
    assert status == {"pass": 0, "sys.exit(75)": 75}.get(ending, 1), text
    assert "DataLoader worker" not in text
    assert not any(worker.is_running() for worker in trained.workers)


@pytest.mark.slow
def test_workers_of_a_killed_trainer_end_by_themselves(trainer):
    trained = trainer("""
        batches = iter(ResumableSampler(1000, batch_size=1).loader(Pids(), num_workers=2))
        said(batches)
        time.sleep(600)
    """)
    trained.process.kill()
    _, alive = psutil.wait_procs(trained.workers, timeout=_DEADLINE)
    assert not alive


class Inside(Dataset):
    """Says of its worker: blocked signals, how a program that it starts ends of a SIGTERM, what stands in the info."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> tuple[int, int, int]:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        ended = subprocess.run(["/bin/sh", "-c", "kill -TERM $$; exit 3"], check=False, timeout=_DEADLINE).returncode
        return len(blocked & set(SHIELDED)), ended, _seen_by_init


_seen_by_init = 0


def _look(worker: int) -> None:
    global _seen_by_init
    info = get_worker_info()
    _seen_by_init = 10 * worker + (info.id == worker and isinstance(info.dataset, Inside))


def test_the_program_finds_its_worker_as_torch_makes_it():
    """Its worker_init_fn is called and sees its dataset, and programs that it starts die of a SIGTERM."""
    batches = iter(ResumableSampler(8, batch_size=1).loader(Inside(), num_workers=2, worker_init_fn=_look))
    rows = [[int(value) for value in next(batches)] for _ in range(4)]
    assert rows == [[0, -signal.SIGTERM, 1], [0, -signal.SIGTERM, 11]] * 2


def test_signals_wait_while_workers_start():
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        with held_back():
            signal.raise_signal(signal.SIGTERM)
            assert not heard
        assert heard == [signal.SIGTERM]
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    finally:
        signal.signal(signal.SIGTERM, before)


class Together(Dataset):
    """Reads a whole batch at once, as some datasets can."""

    def __len__(self) -> int:
        return 8

    def __getitems__(self, numbers: list[int]) -> list[float]:
        assert type(numbers) is list
        return [number + float(torch.rand(())) for number in numbers]


def test_a_batch_draws_by_its_place_and_the_seed():
    with torch.random.fork_rng():

        def drawn(seed: int, position: int) -> list[float]:
            return RepeatableDataset(Together(), seed).__getitems__(PlacedBatch([1, 2], position))

        assert drawn(0, 0) == drawn(0, 0)
        assert len({tuple(drawn(seed, position)) for seed in range(3) for position in range(3)}) == 9
