"""The striker: each interruption at its moment, once, and only those with an effect count."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from unbroken.agent.runtime import AgentStatus, TrainerStatus
from unbroken.drill.interrupt import Made, Striker, sightings, without_effect
from unbroken.drill.schedule import SAYS, Kind, Strike
from unbroken.journal.events import Notice
from unbroken.link.progress import ProgressPage
from unbroken.testing import EC2MetadataService, FakeClock


class StandIn:
    """What the striker sees of a launch: a status that the test sets, and what was done to it."""

    def __init__(self, folder: Path, node: int = 0) -> None:
        self.number = 1
        self.node = node
        self.folder = folder
        self.said: AgentStatus | None = None
        self.signals: list[int] = []
        self.killed = 0
        self.pages: list[ProgressPage] = []

    def attempt(self, number: int, pid: int = 0) -> ProgressPage:
        page = ProgressPage(self.folder / f"{number}-{self.node}.progress", create=True)
        self.pages.append(page)
        self.said = AgentStatus(1, 2, "uri", number, [TrainerStatus(2 * self.node, pid, str(page.path))])
        return page

    def status(self) -> AgentStatus | None:
        return self.said

    def signal(self, number: int) -> bool:
        self.signals.append(number)
        return True

    def kill(self) -> None:
        self.killed += 1


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.strikes: list[tuple[str, int]] = []

    def struck(self, strike: Strike, step: int, number: int, count: int) -> None:
        self.strikes.append((strike.kind, step))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[StandIn]:
    stand_in = StandIn(tmp_path)
    yield stand_in
    for page in stand_in.pages:
        page.close()


@pytest.fixture
def metadata() -> Iterator[EC2MetadataService]:
    with EC2MetadataService() as service:
        yield service


def at(page: ProgressPage, step: int) -> None:
    page.write(step, 100, 1000.0 + step, 0.0, -1, 1000.0)


def striker(metadata: EC2MetadataService, clock: FakeClock, *strikes: Strike) -> tuple[Any, Heard]:
    heard = Heard()
    return Striker(list(strikes), [metadata], heard, clock), heard


def test_it_strikes_after_step_and_delay_and_not_before(launch: Any, metadata: EC2MetadataService) -> None:
    clock = FakeClock()
    striking, heard = striker(metadata, clock, Strike("sigterm", 20, 0.5))
    striking.watch(launch)  # no agent has spoken yet
    page = launch.attempt(1)
    striking.watch(launch)  # no step is known yet
    at(page, 19)
    striking.watch(launch)
    at(page, 20)
    striking.watch(launch)
    clock.advance(0.4)
    striking.watch(launch)
    assert launch.signals == []
    clock.advance(0.2)
    at(page, 21)
    striking.watch(launch)
    assert launch.signals == [signal.SIGTERM]
    assert heard.strikes == [("sigterm", 21)]
    striking.ended(launch)


def test_an_attempt_is_struck_once_however_many_strikes_are_due(launch: Any, metadata: EC2MetadataService) -> None:
    striking, heard = striker(metadata, FakeClock(), Strike("sigterm", 10, 0.0), Strike("kill-both", 20, 0.0))
    at(launch.attempt(1), 50)
    for _ in range(3):
        striking.watch(launch)
    assert (len(launch.signals), launch.killed) == (1, 0)
    at(launch.attempt(2), 50)
    striking.watch(launch)
    assert (len(launch.signals), launch.killed) == (1, 1)
    assert heard.strikes == [("sigterm", 50), ("kill-both", 50)]
    striking.ended(launch)


def test_a_notice_is_taken_back_for_the_next_machine(launch: Any, metadata: EC2MetadataService) -> None:
    striking, _ = striker(metadata, FakeClock(), Strike("ec2-notice", 10, 0.0))
    before = metadata.instance_id
    at(launch.attempt(1), 10)
    striking.watch(launch)
    assert metadata.instance_id == before
    striking.ended(launch)
    assert metadata.instance_id != before


def test_the_trainer_alone_is_killed(launch: Any, metadata: EC2MetadataService) -> None:
    trainer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        striking, _ = striker(metadata, FakeClock(), Strike("kill-trainer", 10, 0.0))
        at(launch.attempt(1, trainer.pid), 12)
        striking.watch(launch)
        assert not psutil.pid_exists(trainer.pid)
        assert (launch.killed, launch.signals) == (0, [])
        seen = sightings(striking)[1]
        assert (seen.last_step, seen.last_step_at, seen.cause) == (12, 1012.0, "SIGKILL trainer")
        assert seen.ended_at is not None
        striking.ended(launch)
    finally:
        trainer.kill()
        trainer.wait()


def test_a_trainer_that_was_gone_already_was_not_struck(launch: Any, metadata: EC2MetadataService) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not psutil.pid_exists(gone.pid)
    striking, heard = striker(metadata, FakeClock(), Strike("kill-trainer", 10, 0.0))
    at(launch.attempt(1, gone.pid), 12)
    striking.watch(launch)
    assert (striking.made, heard.strikes) == ([], [])
    striking.ended(launch)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Any]]:
    stand_ins = [StandIn(tmp_path, node) for node in range(2)]
    yield stand_ins
    for stand_in in stand_ins:
        for page in stand_in.pages:
            page.close()


@pytest.mark.parametrize(("kind", "signals", "kills"), [("sigterm", 1, 0), ("kill-both", 0, 1), ("ec2-notice", 0, 0)])
def test_one_node_alone_is_struck_by_its_own_progress(nodes: list[Any], kind: Kind, signals: int, kills: int) -> None:
    with EC2MetadataService() as first, EC2MetadataService() as second:
        heard, clock = Heard(), FakeClock()
        striking = Striker([Strike(kind, 20, 0.0, node=1)], [first, second], heard, clock)  # type: ignore[arg-type]
        pages = [node.attempt(1) for node in nodes]
        at(pages[0], 20)
        at(pages[1], 19)
        for node in nodes:
            striking.watch(node)
        assert heard.strikes == []
        at(pages[1], 20)
        for node in nodes:
            striking.watch(node)
        assert heard.strikes == [(kind, 20)]
        assert (nodes[0].signals, nodes[0].killed) == ([], 0)
        assert (len(nodes[1].signals), nodes[1].killed) == (signals, kills)
        assert (announced(first), announced(second)) == (False, kind == "ec2-notice")
        assert sightings(striking)[1].cause == f"{SAYS[kind]} on node 1"
        for node in nodes:
            striking.ended(node)
        assert announced(second) is False


def announced(service: EC2MetadataService) -> bool:
    return "/latest/meta-data/spot/instance-action" in service._documents


def test_of_several_nodes_the_step_that_any_completed_counts(nodes: list[Any]) -> None:
    with EC2MetadataService() as first, EC2MetadataService() as second:
        striking = Striker([], [first, second], Heard(), FakeClock())  # type: ignore[arg-type]
        for node, step in zip(nodes, (31, 30), strict=True):
            at(node.attempt(1), step)
            striking.watch(node)
            striking.ended(node)
        assert (striking.sightings[1].last_step, striking.sightings[1].last_step_at) == (31, 1031.0)


def made(kind: Kind, attempt: int) -> Made:
    return Made(Strike(kind, 10, 0.0), attempt, 1000.0, 10)


@pytest.fixture
def two_attempts(run_writer: Callable[[str], Any], tmp_path: Path) -> Any:
    """The first was told by EC2 and interrupted, the second finished."""
    run = run_writer(str(tmp_path / "run"))
    run.commit(10)
    run.append(Notice("ec2", "terminate", 2_000_000_000.0))
    run.end("interrupted", 10)
    run.claim()
    run.commit(20)
    run.finish(20)
    return run.journal.state


def test_a_notice_that_ended_its_attempt_had_an_effect(two_attempts: Any) -> None:
    assert without_effect([made("ec2-notice", 1), made("kill-both", 1)], two_attempts) == []


@pytest.mark.parametrize("kind", ["ec2-notice", "sigterm", "kill-trainer", "kill-both"])
def test_nothing_that_was_done_to_the_attempt_that_finished_had_an_effect(two_attempts: Any, kind: Kind) -> None:
    late = made(kind, 2)
    assert without_effect([late], two_attempts) == [late]


def test_a_notice_that_nobody_heard_had_no_effect(run_writer: Callable[[str], Any], tmp_path: Path) -> None:
    run = run_writer(str(tmp_path / "run"))
    run.commit(10)
    run.end("crashed", 10)
    run.claim()
    unheard = made("ec2-notice", 1)
    assert without_effect([unheard, made("kill-trainer", 1)], run.journal.state) == [unheard]
