"""The detached agent, with a real trainer that somebody else started."""

from __future__ import annotations

import signal
import sys
from typing import Any


def attach(launcher: Any, pid: int, *more: str) -> Any:
    socket = str(launcher.folder / "agent.sock")
    return launcher.start([sys.executable, "-m", "unbroken.agent", "--socket", socket, "--watch", str(pid), *more])


def start_trainer(launcher: Any, **plan: Any) -> Any:
    launcher.environment["UNBROKEN_SOCKET"] = str(launcher.folder / "agent.sock")
    return launcher.start(launcher.trainer(**plan))


def test_finished_attempt_is_journalled_and_the_agent_ends(launcher: Any) -> None:
    trainer = start_trainer(launcher, until=2)
    agent = attach(launcher, trainer.process.pid)
    assert trainer.wait() == 0, trainer.output
    assert agent.wait() == 0, agent.output
    assert launcher.journal().state.attempts[1].ended.cause == "finished"


def test_signal_of_the_trainer_becomes_a_stop(launcher: Any) -> None:
    trainer = start_trainer(launcher, until=0, signal_self=True)
    agent = attach(launcher, trainer.process.pid, "--grace", "25")
    trainer.until("trainer: stop sigterm")
    assert trainer.wait() == 75
    assert agent.wait() == 0, agent.output
    record = launcher.journal().state.attempts[1]
    assert (record.ended.cause, record.ended.last_step) == ("interrupted", 2)


def test_signals_for_the_terminals_group_are_not_for_the_agent(launcher: Any) -> None:
    trainer = start_trainer(launcher, until=0)
    agent = attach(launcher, trainer.process.pid)
    trainer.until("trainer: step 1")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        agent.signal(number)
    trainer.signal(signal.SIGKILL)
    assert agent.wait() == 0, agent.output
    record = launcher.journal().state.attempts[1]
    assert (record.ended.cause, record.ended.last_step, record.notices) == ("crashed", 1, [])


def test_deadline_is_enforced_on_the_watched_process(launcher: Any) -> None:
    trainer = start_trainer(launcher, until=0, signal_self=True, on_stop="ignore")
    agent = attach(launcher, trainer.process.pid, "--grace", "2")
    trainer.until("trainer: SIGTERM")
    assert trainer.wait() == -signal.SIGKILL
    assert agent.wait() == 0, agent.output
    assert launcher.journal().state.attempts[1].ended.cause == "interrupted"


def test_agent_without_a_trainer_ends_by_itself(launcher: Any) -> None:
    silent = launcher.start([sys.executable, "-c", "input()"])  # ends at once: no input
    other = launcher.start([sys.executable, "-c", "import time; time.sleep(60)"])
    assert attach(launcher, other.process.pid, "--hello-patience", "0.2").wait() == 1
    silent.wait()
    assert attach(launcher, silent.process.pid).wait() == 1


def test_socket_must_have_the_name_that_others_look_for(launcher: Any) -> None:
    command = [sys.executable, "-m", "unbroken.agent", "--socket", str(launcher.folder / "x"), "--watch", "1"]
    agent = launcher.start(command)
    assert agent.wait() == 78
    assert "must be named agent.sock" in agent.output


def test_folder_of_a_killed_trainer_is_cleared_and_that_of_a_living_one_kept(launcher: Any) -> None:
    for until, killed in ((0, True), (2, False)):
        folder = launcher.folder / f"trainer-{until}"
        folder.mkdir()
        trainer = start_trainer(launcher, until=until)
        agent = attach(launcher, trainer.process.pid, "--clear", str(folder))
        if killed:
            trainer.until("trainer: step 1")
            assert folder.is_dir()
            trainer.signal(signal.SIGKILL)
        assert agent.wait() == 0, agent.output
        assert not folder.exists()
    folder.mkdir()
    other = launcher.start([sys.executable, "-c", "import time; time.sleep(60)"])
    assert attach(launcher, other.process.pid, "--hello-patience", "0.2", "--clear", str(folder)).wait() == 1
    assert folder.is_dir()  # it may be trying another agent
