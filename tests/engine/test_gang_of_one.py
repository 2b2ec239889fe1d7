"""A gang of one node: started again by the exit contract, and no process is left behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from unbroken.engine import AgentSettings, Launch, LocalGang, Node
from unbroken.errors import ChildError
from unbroken.journal import Journal
from unbroken.store import open_store

PATIENCE = 60.0

# A command whose grandchild leaves the process tree: a new session, its parent dead.
STRAY = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import subprocess, sys; subprocess.Popen([sys.executable, '-c', "
    "'import time; time.sleep(600)'], start_new_session=True)"]).wait()
print("ready", flush=True)
time.sleep(600)
"""

TRAINING = """
import time, torch, unbroken
model = torch.nn.Linear(2, 2)
with unbroken.Run("unused", every=5, state={"model": model}) as run:
    for step in run.steps(until=40):
        time.sleep(0.05)
"""


class Onlooking:
    """A watcher that notes the launches and calls ``each`` while they run."""

    def __init__(self, each: Callable[[Launch], None] = lambda launch: None) -> None:
        self.launches: list[Launch] = []
        self.over: list[int | None] = []
        self._each = each

    def started(self, launch: Launch) -> None:
        self.launches.append(launch)

    def watch(self, launch: Launch) -> None:
        self._each(launch)

    def ended(self, launch: Launch) -> None:
        self.over.append(launch.returncode)


def gang(
    folder: Path, *code: str, starts: int = 5, timeout: float = PATIENCE, restarts: int = 0, trains: bool = True
) -> LocalGang:
    """A gang for a command that opens the run at ``folder``, or for one that need not open any."""
    node = Node([sys.executable, "-c", *code], {"AWS_EC2_METADATA_DISABLED": "true"})
    return LocalGang(
        lambda: [node],
        AgentSettings(uri=str(folder / "run") if trains else "", max_restarts=restarts, grace="10"),
        name="train",
        logs=folder / "logs",
        max_starts=starts,
        timeout=timeout,
    )


def assert_nothing_lives(launch: Launch) -> None:
    assert launch.processes() == []
    assert not psutil.pid_exists(launch.agent_pid)


def test_a_command_that_is_finished_is_started_once(tmp_path: Path) -> None:
    looking = Onlooking()
    (launch,) = gang(tmp_path, "print('hello')", trains=False).run(looking)
    assert (launch.returncode, launch.number, looking.over) == (0, 1, [0])
    assert "hello" in launch.log_tail()
    assert launch.ended_at is not None
    assert 0 < launch.seconds < PATIENCE
    assert_nothing_lives(launch)


@pytest.mark.slow
def test_an_interrupted_run_is_started_again_and_goes_on(tmp_path: Path) -> None:
    struck: list[int] = []

    def interrupt(launch: Launch) -> None:
        status = launch.status()
        if not struck and status is not None and status.trainers and committed() >= 1:
            struck.append(launch.number)
            assert launch.signal(signal.SIGTERM)

    def committed() -> int:
        return len(list((tmp_path / "run" / "manifests").glob("*.json")))

    launches = gang(tmp_path, TRAINING).run(Onlooking(interrupt))
    assert [launch.returncode for launch in launches] == [75, 0]
    state = Journal.open(open_store(str(tmp_path / "run"))).state
    assert state.finished_step == 40
    assert [record.ended and record.ended.cause for record in state.attempts.values()] == ["interrupted", "finished"]
    assert state.attempts[2].restored_step >= 5


def test_a_command_that_fails_is_not_started_again(tmp_path: Path) -> None:
    looking = Onlooking()
    with pytest.raises(ChildError, match="ended with 1") as caught:
        gang(tmp_path, "raise SystemExit('no such data')").run(looking)
    assert (caught.value.kind, caught.value.returncode) == ("exit", 1)
    assert "no such data" in caught.value.hint
    assert len(looking.launches) == 1


def test_an_agent_that_is_killed_is_started_again_so_many_times_and_no_more(tmp_path: Path) -> None:
    looking = Onlooking(lambda launch: launch.kill())
    with pytest.raises(ChildError, match="not finished after 3 starts") as caught:
        gang(tmp_path, "import time; time.sleep(600)", starts=3).run(looking)
    assert caught.value.kind == "starts"
    assert looking.over == [-9, -9, -9]


def stray_is_there(launch: Launch) -> bool:
    return "ready" in launch.log_tail() and len(launch.processes()) == 3


def test_time_that_is_up_ends_every_process(tmp_path: Path) -> None:
    looking = Onlooking()
    with pytest.raises(ChildError, match="not finished after") as caught:
        gang(tmp_path, STRAY, timeout=2.0).run(looking)
    assert caught.value.kind == "timeout"
    assert_nothing_lives(looking.launches[0])


def test_an_exception_leaves_no_process_even_outside_the_tree(tmp_path: Path) -> None:
    found: list[psutil.Process] = []

    def interrupt(launch: Launch) -> None:
        if stray_is_there(launch):
            found.extend(launch.processes())
            raise KeyboardInterrupt

    looking = Onlooking(interrupt)
    with pytest.raises(KeyboardInterrupt):
        gang(tmp_path, STRAY).run(looking)
    assert found[0].pid == looking.launches[0].agent_pid
    assert_nothing_lives(looking.launches[0])
    _, alive = psutil.wait_procs(found, timeout=10)
    assert alive == []


def test_processes_of_others_are_not_touched(tmp_path: Path) -> None:
    (launch,) = gang(tmp_path, "pass", trains=False).run(Onlooking())
    launch.kill()
    assert psutil.pid_exists(os.getpid())
    assert launch.signal(signal.SIGTERM) is False


def test_empty_settings_are_left_to_the_agent() -> None:
    assert AgentSettings().arguments() == []
    assert AgentSettings(uri="u", price=0.0, max_restarts=0).arguments() == [
        "--uri", "u", "--price", "0.0", "--max-restarts", "0",
    ]  # fmt: skip
