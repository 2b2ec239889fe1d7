"""``dcp.async_save``: what is stored is the state at the call, wherever it is written."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.training.dcp_cases import cause, same
from torch.distributed.checkpoint.api import CheckpointException

from unbroken.dcp import Reader, Writer
from unbroken.errors import ConfigError
from unbroken.journal import Journal
from unbroken.store import open_store

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def state_at(step: int) -> dict[str, Any]:
    return {"x": torch.full((300,), float(step)), "inner": {"n": step, "list": [step]}}


def loaded(uri: str, step: int) -> dict[str, Any]:
    state = state_at(0)
    dcp.load(state, storage_reader=Reader(uri, step=step))
    return state


def test_what_is_stored_is_the_state_at_the_call(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, may_write = Writer(uri), threading.Event()
    write_data = writer.write_data
    monkeypatch.setattr(writer, "write_data", lambda *given: may_write.wait(30) and write_data(*given))
    state = state_at(1)
    future = dcp.async_save(state, storage_writer=writer, checkpoint_id="1")
    state["x"].fill_(99)
    state["inner"]["n"] = 99
    state["inner"]["list"].append(99)
    assert not future.done()
    may_write.set()
    future.result(timeout=60)
    assert same(loaded(uri, 1), state_at(1))


def test_an_error_comes_out_of_the_future(uri: str) -> None:
    future = dcp.async_save({"x": {"y": object()}}, storage_writer=Writer(uri), checkpoint_id="1")
    with pytest.raises(CheckpointException) as raised:
        future.result(timeout=60)
    error = cause(raised.value)
    assert isinstance(error, ConfigError)
    assert "x.y" in str(error)


def test_of_two_saves_at_once_the_older_never_becomes_the_newest(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, begun, may_finish = Writer(uri), threading.Event(), threading.Event()
    finish = writer.finish

    def late(**given: Any) -> None:
        begun.set()
        assert may_finish.wait(30)
        finish(**given)

    monkeypatch.setattr(writer, "finish", late)
    first = dcp.async_save(state_at(1), storage_writer=writer, checkpoint_id="1")
    assert begun.wait(30)
    monkeypatch.setattr(writer, "finish", finish)
    second = dcp.async_save(state_at(2), storage_writer=writer, checkpoint_id="2")
    second.result(timeout=60)
    may_finish.set()
    with pytest.raises(CheckpointException) as raised:
        first.result(timeout=60)
    assert isinstance(cause(raised.value), ConfigError)
    assert Reader(uri).steps() == [2]
    assert same(loaded(uri, 2), state_at(2))


def test_copies_of_a_writer_are_one_attempt(uri: str) -> None:
    writer = Writer(uri)
    dcp.save(state_at(1), storage_writer=writer, checkpoint_id="1")
    text = pickle.dumps(writer)
    for step in (2, 3):  # what the process that writes for async_save is sent with each save
        dcp.save(state_at(step), storage_writer=pickle.loads(text), checkpoint_id=str(step))
    dcp.save(state_at(4), storage_writer=writer, checkpoint_id="4")
    state = Journal.open(open_store(uri)).state
    assert list(state.attempts) == [1]
    commits = [record.event for record in state.commits]
    assert [event.step for event in commits] == [1, 2, 3, 4]
    assert [event.parent for event in commits] == ["", *(event.manifest for event in commits[:-1])]


PROGRAM = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from unbroken.dcp import Writer

def main():
    uri, group = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{group}", rank=0, world_size=1)
    writer = Writer(uri)
    for step in (1, 2):
        state = {"x": torch.full((300,), float(step)), "inner": {"n": step, "list": [step]}}
        future = dcp.async_save(state, storage_writer=writer, checkpoint_id=f"step-{step}",
                                async_checkpointer_type=AsyncCheckpointerType.PROCESS)
        state["x"].fill_(99)
        future.result(timeout=120)
    dcp.save({"x": torch.full((300,), 3.0), "inner": {"n": 3, "list": [3]}}, storage_writer=writer, checkpoint_id="3")
    dist.destroy_process_group()

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_another_process_writes_and_is_the_same_attempt(uri: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, program, uri, tmp_path / "group"],
        capture_output=True, text=True, timeout=150, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for step in (1, 2, 3):
        assert same(loaded(uri, step), state_at(step))
    assert list(Journal.open(open_store(uri)).state.attempts) == [1]
