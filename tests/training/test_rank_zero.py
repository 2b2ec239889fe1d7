"""The recipe of docs/many-ranks.md as it stands there: rank 0 saves, the others wait with a bound."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from unbroken import CheckpointManager
from unbroken.errors import ConfigError
from unbroken.journal import Journal
from unbroken.store import open_store

_DEADLINE = 90.0
_DOC = Path(__file__).parents[2] / "docs" / "many-ranks.md"
_BOUND = "BOUND = datetime.timedelta(minutes=10)"

_STANDS_STILL = """
# Rank 0 begins its second save, says so, and writes nothing of it.
import threading
from unbroken.checkpoint import CheckpointWriter
write, calls = CheckpointWriter.write, []
def stand_still(writer, state, **options):
    calls.append(state)
    if len(calls) == 2:
        print("saving", flush=True)
        threading.Event().wait(600)
    return write(writer, state, **options)
CheckpointWriter.write = stand_still
"""


def recipe() -> str:
    blocks = re.findall(r"```python\n(.*?)```", _DOC.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if "CheckpointManager(" in block]
    return found


class Ranks:
    """Two processes of one gloo group."""

    def __init__(self, folder: Path, uri: str, text: str) -> None:
        script = folder / "train.py"
        script.write_text(text)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "UNBROKEN_RUN": uri,
            "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.processes = [
            subprocess.Popen(
                [sys.executable, script], env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip

    def await_save(self) -> None:
        """Return when rank 0 stands still in its second save."""
        assert self.processes[0].stdout.readline() == "saving\n", self.end(0)

    def end(self, rank: int) -> tuple[int, str]:
        """Exit status and what it wrote, once it has ended."""
        text, _ = self.processes[rank].communicate(timeout=_DEADLINE)
        return self.processes[rank].returncode, text

    def clear(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate(timeout=_DEADLINE)


@pytest.fixture
def start(tmp_path, uri) -> Iterator[Callable[..., Ranks]]:
    started: list[Ranks] = []

    def begin(text: str, where: str = uri) -> Ranks:
        started.append(Ranks(tmp_path, where, text))
        return started[-1]

    yield begin
    for ranks in started:
        ranks.clear()


def finish(ranks: Ranks) -> None:
    assert [ranks.end(rank) for rank in range(2)] == [(0, ""), (0, "")]


@pytest.mark.slow
class TestRecipe:
    def test_all_ranks_save_together_and_finish(self, start, uri):
        finish(start(recipe()))
        state = Journal.open(open_store(uri)).state
        assert [record.step for record in state.checkpoints] == [2, 4, 6]
        assert state.finished_step == 6
        saved = CheckpointManager(uri).read()
        assert set(saved["model"]) == {"weight", "bias"}
        assert saved["data"]["consumed"] == 6 * 2 * 8

    def test_a_rank_0_that_is_killed_in_a_save_ends_the_wait_and_the_next_start_goes_on(self, start, uri, tmp_path):
        """Long before the bound of ten minutes: the connection breaks."""
        assert _BOUND in recipe()
        ranks = start(_STANDS_STILL + recipe())
        ranks.await_save()
        ranks.processes[0].kill()
        status, text = ranks.end(1)
        assert status == 1
        assert "dist.monitored_barrier(waiting, timeout=BOUND)" in text
        assert CheckpointManager(uri).steps() == [2]

        finish(start(recipe()))
        finish(start(recipe(), str(tmp_path / "truth")))
        assert CheckpointManager(uri).steps() == [2, 4, 6]
        saved, truth = CheckpointManager(uri).read(), CheckpointManager(str(tmp_path / "truth")).read()
        assert torch.equal(saved["model"]["weight"], truth["model"]["weight"])
        assert saved["data"] == truth["data"]

    def test_a_rank_0_that_hangs_ends_the_wait_with_its_bound(self, start):
        ranks = start(_STANDS_STILL + recipe().replace(_BOUND, "BOUND = datetime.timedelta(seconds=5)"))
        ranks.await_save()
        ranks.processes[0].send_signal(signal.SIGSTOP)  # it says nothing more, and no connection breaks
        status, text = ranks.end(1)
        assert status == 1
        assert "dist.monitored_barrier(waiting, timeout=BOUND)" in text

    def test_rank_0_gives_up_by_itself_and_says_why(self, start):
        still = _STANDS_STILL.replace("wait(600)", "wait(8)")
        ranks = start(still + recipe().replace(_BOUND, "BOUND = datetime.timedelta(seconds=5)"))
        status, text = ranks.end(0)
        assert status == 1
        assert "the save of step 4 was not durable within 4.5 s" in text
        assert ranks.end(1)[0] == 1


def rank(monkeypatch, number: int) -> None:
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("WORLD_SIZE", "2")


def test_rank_0_of_several_saves_as_a_single_process(uri, monkeypatch):
    rank(monkeypatch, 0)
    with CheckpointManager(uri) as manager:
        manager.save(1, {"x": torch.ones(3)}).wait(60)
        manager.finish()
    assert torch.equal(CheckpointManager(uri).read()["x"], torch.ones(3))


def test_the_other_ranks_read_and_cannot_save(uri, monkeypatch):
    rank(monkeypatch, 0)
    with CheckpointManager(uri) as manager:
        manager.save(1, {"x": torch.ones(3)}).wait(60)
    rank(monkeypatch, 1)
    state = {"x": torch.zeros(3)}
    with CheckpointManager(uri) as manager:
        assert manager.restore(state) == 1
        for refused in (lambda: manager.save(2, state), manager.finish):
            with pytest.raises(ConfigError, match=r"rank 1 of 2.*many-ranks\.md"):
                refused()
    assert torch.equal(state["x"], torch.ones(3))
    assert len(Journal.open(open_store(uri)).state.attempts) == 1
