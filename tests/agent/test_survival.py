"""Trainers and agents that are killed, with real processes: what was announced becomes a sound checkpoint."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from unbroken.checkpoint import load_manifest, read_tensors, verify_checkpoint
from unbroken.journal import CheckpointRecord

HERE = Path(__file__).parent
SIZE = 1 << 20


def command(launcher: Any, **plan: Any) -> list[str]:
    return [sys.executable, str(HERE / "stager.py"), json.dumps({"uri": launcher.uri, **plan})]


def start(launcher: Any, kind: str, plan: dict[str, Any], **options: Any) -> Any:
    """An agent, and the process that trains, under ``unbroken run`` or with an agent attached to it."""
    options["descriptors"] = str(launcher.folder / "left.json")
    if kind == "supervised":
        return launcher.agent(command(launcher, **plan), max_restarts=0, **options)
    launcher.environment["UNBROKEN_SOCKET"] = str(launcher.folder / "agent.sock")
    trainer = launcher.start(command(launcher, **plan))
    return launcher.agent([], attach=trainer.process.pid, **options)


@pytest.fixture
def sound(launcher: Any, stager: Any) -> Callable[[], list[CheckpointRecord]]:
    """Gives the checkpoints, each verified and compared with what was staged."""

    def check() -> list[CheckpointRecord]:
        journal = launcher.journal()
        for record in journal.state.checkpoints:
            assert verify_checkpoint(journal.store, record).problems == []
            held = read_tensors(journal.store, load_manifest(journal.store, record))
            assert {name: bytes(data) for name, data in held.items()} == {
                name: stager.content(record.step, name) for name in ("frozen", "weight")
            }
        return list(journal.state.checkpoints)

    return check


def nothing_left(launcher: Any) -> None:
    left = json.loads((launcher.folder / "left.json").read_text())
    assert left["memory"] == []
    assert left["threads"] == []
    assert left["more"] <= 0


@pytest.mark.parametrize("kind", ["supervised", "attached"])
@pytest.mark.parametrize(
    ("die", "durable"),
    [("writing", [4]), ("sealed", [4]), ("announced", [4, 8])],
)
def test_killed_trainer_loses_nothing_that_it_announced(
    launcher: Any, sound: Any, kind: str, die: str, durable: list[int]
) -> None:
    agent = start(launcher, kind, {"saves": [4, 8], "answered": 1, "die": die})
    agent.wait()
    records = sound()
    assert [record.step for record in records] == durable, agent.output
    assert [record.event.parent for record in records] == ["", *(record.event.manifest for record in records[:-1])]
    entries = [type(entry.event).__name__ for entry in launcher.journal().entries]
    assert entries[-1] == "AttemptEnded"
    nothing_left(launcher)


@pytest.mark.parametrize("kind", ["supervised", "attached"])
def test_upload_under_way_goes_on_when_its_trainer_is_killed(launcher: Any, sound: Any, kind: str) -> None:
    gate = launcher.folder / "gate"
    plan = {"saves": [4, 8], "die": "held", "held": str(launcher.folder / "held")}
    agent = start(launcher, kind, plan, gate=str(gate))
    agent.until("the trainer is gone: making step 8, which it left in memory, durable")
    assert launcher.journal().state.checkpoints == []
    gate.touch()
    agent.wait()
    assert [record.step for record in sound()] == [4, 8]
    assert launcher.journal().state.attempts[1].ended.cause == "crashed"
    nothing_left(launcher)


def test_restarted_trainer_gets_the_memory_and_goes_on_from_what_was_rescued(launcher: Any, sound: Any) -> None:
    left = launcher.folder / "left.json"
    agent = launcher.agent(command(launcher, saves=[4, 8], die="announced"), descriptors=str(left))
    assert agent.wait() == 0, agent.output
    records = sound()
    assert [(record.attempt, record.step) for record in records] == [(1, 4), (1, 8), (2, 9)]
    assert records[2].event.parent == records[1].event.manifest
    assert records[2].event.written < 1.5 * SIZE  # the frozen tensor was not written again
    assert "with 2 slots" in agent.output
    assert f"returned 0 {records[0].event.manifest}" in agent.output
    assert f"returned 1 {records[1].event.manifest}" in agent.output
    nothing_left(launcher)


def test_memory_that_was_written_to_since_its_commit_is_returned_without_a_name(launcher: Any, sound: Any) -> None:
    agent = launcher.agent(command(launcher, saves=[4, 8, 12], answered=2, die="writing"))
    assert agent.wait() == 0, agent.output
    assert "returned 0 -" in agent.output
    assert "returned 1 manifests/" in agent.output
    assert [record.step for record in sound()] == [4, 8, 9]


def test_new_trainer_waits_until_the_last_ones_state_is_durable(launcher: Any, sound: Any) -> None:
    gate = launcher.folder / "gate"
    # A launcher that starts the trainer again by itself, as torchrun does: the command never ends.
    stubborn = ["sh", "-c", '"$@"; exec "$@"', "sh"]
    plan = {"saves": [4], "die": "held", "held": str(launcher.folder / "held")}
    agent = launcher.agent([*stubborn, *command(launcher, **plan)], gate=str(gate))
    agent.until("durable; the next trainer waits")
    gate.touch()
    assert agent.wait() == 0, agent.output
    assert [(record.attempt, record.step) for record in sound()] == [(1, 4), (2, 5)]


def test_storage_that_is_away_when_the_trainer_dies_is_waited_for(launcher: Any, sound: Any) -> None:
    obstacle = Path(launcher.uri) / "packs"
    obstacle.parent.mkdir()
    obstacle.write_text("")
    agent = start(launcher, "supervised", {"saves": [4], "die": "announced"})
    agent.until("the trainer is gone: making step 4")
    obstacle.unlink()
    agent.wait()
    assert [record.step for record in sound()] == [4]


def test_rescue_ends_with_the_patience_and_is_said(launcher: Any, sound: Any) -> None:
    plan = {"saves": [4], "die": "held", "held": str(launcher.folder / "held")}
    agent = start(launcher, "supervised", plan, gate=str(launcher.folder / "gate"), upload_patience=0.2)
    agent.wait()
    assert "step 4 could not be made durable in time" in agent.output
    assert sound() == []
    nothing_left(launcher)


def test_notice_bounds_the_rescue(launcher: Any, sound: Any) -> None:
    plan = {"saves": [4], "die": "held", "held": str(launcher.folder / "held")}
    agent = start(launcher, "supervised", plan, gate=str(launcher.folder / "gate"), grace=2.0)
    agent.until("the trainer is gone")
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 75, agent.output
    assert "step 4 could not be made durable in time" in agent.output
    assert sound() == []


def test_trainer_killed_while_a_notice_runs_still_has_its_state_saved(launcher: Any, sound: Any) -> None:
    gate = launcher.folder / "gate"
    agent = start(launcher, "supervised", {"saves": [4]}, gate=str(gate), grace=60.0)
    agent.until("announced 4")
    await_file(launcher.folder / "held")
    agent.signal(signal.SIGTERM)
    agent.until('heard {"type":"stop"')
    psutil.Process(agent.status().trainers[0].pid).kill()
    agent.until("the trainer is gone: making step 4")
    gate.touch()
    assert agent.wait() == 75, agent.output
    assert "interrupted; step 4 is durable" in agent.output
    assert [record.step for record in sound()] == [4]


def test_killed_agent_is_adopted_and_the_step_is_committed_once(launcher: Any, sound: Any) -> None:
    gate = launcher.folder / "gate"
    plan = {"saves": [4, 8], "answered": 0}
    launcher.environment["UNBROKEN_SOCKET"] = str(launcher.folder / "agent.sock")
    trainer = launcher.start(command(launcher, **plan))
    first = launcher.agent([], attach=trainer.process.pid, gate=str(gate))
    claim = trainer.until("welcome 1").split()[3]
    trainer.until("announced 8")
    await_file(launcher.folder / "held")
    first.signal(signal.SIGKILL)
    first.process.wait(10)
    assert launcher.journal().state.checkpoints == []
    second = launcher.start(command(launcher, first_hello=(1, claim), **plan))
    agent = launcher.agent([], attach=second.process.pid)
    assert second.wait() == 0, second.output
    assert agent.wait() == 0, agent.output
    assert [(record.attempt, record.step) for record in sound()] == [(1, 4), (1, 8)]


def test_choice_at_a_notice_is_said_and_journalled(launcher: Any, sound: Any) -> None:
    gate = launcher.folder / "gate"
    plan = {"saves": [4], "stop": 9, "slots": 1}
    agent = launcher.agent(command(launcher, **plan), gate=str(gate), grace=30.0)
    agent.until("announced 4")
    await_file(launcher.folder / "held")
    agent.signal(signal.SIGTERM)
    agent.until("step 4 in flight")
    gate.touch()
    assert agent.wait() == 75, agent.output
    notes = [entry.event for entry in launcher.journal().state.notes if entry.event.topic == "emergency"]
    assert notes[0].data["stop_step"] == 9
    assert notes[0].data["in_flight_step"] == 4
    assert sound()[-1].step == 9


def test_command_that_is_restarted_after_an_upload_runs_at_the_usual_priority(launcher: Any, sound: Any) -> None:
    show = f'"$@"; {sys.executable} -c "import os; print(\'nice\', os.nice(0))"; exit 1'
    agent = launcher.agent(["sh", "-c", show, "sh", *command(launcher, saves=[4], answered=1)], max_restarts=1)
    agent.wait()
    usual = psutil.Process().nice()
    assert [line for line in agent.lines if line.startswith("nice")] == [f"nice {usual}"] * 2


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
