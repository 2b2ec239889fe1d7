"""A gang: nodes that start together, end together and are started again together, and leave no process behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from unbroken.engine import AgentSettings, Launch, LocalGang, Node
from unbroken.engine.gang import Parting
from unbroken.engine.placement import Seat
from unbroken.errors import ChildError
from unbroken.testing import FakeClock

PATIENCE = 60.0

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


class Onlooking:
    """A watcher that notes starts and ends, and calls ``each`` while nodes run."""

    def __init__(self, each: Callable[[Launch], None] = lambda launch: None) -> None:
        self.launches: list[Launch] = []
        self.over: list[tuple[int, int, int | None]] = []
        self._each = each

    def started(self, launch: Launch) -> None:
        self.launches.append(launch)

    def watch(self, launch: Launch) -> None:
        self._each(launch)

    def ended(self, launch: Launch) -> None:
        self.over.append((launch.number, launch.node, launch.returncode))
        assert launch.processes() == []


def gang(
    folder: Path, *starts: list[str], grace: str = "5", timeout: float = PATIENCE, max_starts: int = 5
) -> LocalGang:
    """A gang whose ``n``-th start runs the ``n``-th list of scripts, one a node; the last one again and again."""
    left = list(starts)

    def nodes() -> list[Node]:
        scripts = left.pop(0) if len(left) > 1 else left[0]
        return [Node([sys.executable, "-c", text], {"NODE": str(i)}) for i, text in enumerate(scripts)]

    return LocalGang(
        nodes, AgentSettings(grace=grace, max_restarts=0), name="train", logs=folder / "logs", timeout=timeout,
        max_starts=max_starts,
    )  # fmt: skip


def all_ready(launches: list[Launch]) -> bool:
    return all("ready" in launch.log_tail() for launch in launches)


def assert_nothing_lives(looking: Onlooking) -> None:
    for launch in looking.launches:
        assert launch.processes() == []
        assert not psutil.pid_exists(launch.agent_pid)


def test_nodes_that_are_all_finished_are_started_once_each_with_its_own_environment(tmp_path: Path) -> None:
    looking = Onlooking()
    hello = "import os; print('I am node', os.environ['NODE'])"
    launches = gang(tmp_path, [hello, hello]).run(looking)
    assert [(one.number, one.node, one.returncode) for one in launches] == [(1, 0, 0), (1, 1, 0)]
    assert sorted(looking.over) == [(1, 0, 0), (1, 1, 0)]
    for node, name in enumerate(("agent-1-node-0.log", "agent-1-node-1.log")):
        assert f"I am node {node}" in (tmp_path / "logs" / name).read_text()
    assert launches[0].runtime_dir != launches[1].runtime_dir


def test_a_node_that_is_lost_takes_the_others_with_it_and_all_start_again(tmp_path: Path) -> None:
    lost: list[Launch] = []

    def lose_one(launch: Launch) -> None:
        if not lost and launch.node == 1 and all_ready(looking.launches):
            lost.append(launch)
            launch.kill()

    looking = Onlooking(lose_one)
    launches = gang(tmp_path, [SLEEP, SLEEP], ["pass", "pass"]).run(looking)
    assert [(one.number, one.node, one.returncode) for one in launches] == [
        (1, 0, 75),
        (1, 1, -9),
        (2, 0, 0),
        (2, 1, 0),
    ]
    assert_nothing_lives(looking)


def test_an_agent_that_is_lost_alone_takes_its_own_command_with_it(tmp_path: Path) -> None:
    below: list[psutil.Process] = []

    def lose_agent(launch: Launch) -> None:
        if not below and launch.node == 0 and all_ready(looking.launches):
            below.extend(launch.processes()[1:])
            launch.signal(signal.SIGKILL)

    looking = Onlooking(lose_agent)
    launches = gang(tmp_path, [SLEEP, SLEEP], ["pass", "pass"]).run(looking)
    assert [one.returncode for one in launches] == [-9, 75, 0, 0]
    assert len(below) == 1
    _, alive = psutil.wait_procs(below, timeout=10)
    assert alive == []


def test_survivors_that_hear_nothing_are_ended_all_the_same(tmp_path: Path) -> None:
    lost: list[Launch] = []

    def lose_one(launch: Launch) -> None:
        if not lost and launch.node == 0 and all_ready(looking.launches):
            lost.append(launch)
            launch.kill()

    looking = Onlooking(lose_one)
    launches = gang(tmp_path, [DEAF, DEAF], ["pass", "pass"], grace="2").run(looking)
    assert [one.returncode for one in launches] == [-9, 75, 0, 0]  # its agent killed what did not listen
    assert_nothing_lives(looking)


def test_an_interrupted_node_and_its_finished_fellow_are_both_started_again(tmp_path: Path) -> None:
    told: list[Launch] = []

    def interrupt(launch: Launch) -> None:
        if not told and launch.node == 0 and "ready" in launch.log_tail():
            told.append(launch)
            launch.signal(signal.SIGTERM)

    looking = Onlooking(interrupt)
    launches = gang(tmp_path, [SLEEP, "pass"], ["pass", "pass"]).run(looking)
    assert [(one.number, one.node, one.returncode) for one in launches] == [(1, 0, 75), (1, 1, 0), (2, 0, 0), (2, 1, 0)]


def test_a_node_that_fails_ends_the_others_and_is_named_with_its_last_words(tmp_path: Path) -> None:
    looking = Onlooking()
    with pytest.raises(ChildError, match="node 1 of `train` ended with 1") as caught:
        gang(tmp_path, [SLEEP, "raise SystemExit('no such data')"]).run(looking)
    assert (caught.value.kind, caught.value.returncode) == ("exit", 1)
    assert "no such data" in caught.value.hint
    assert "agent-1-node-1.log" in caught.value.hint
    assert len(looking.launches) == 2
    assert_nothing_lives(looking)


def test_a_gang_is_started_so_many_times_and_no_more(tmp_path: Path) -> None:
    looking = Onlooking(lambda launch: launch.kill())
    with pytest.raises(ChildError, match="`train` is not finished after 2 starts") as caught:
        gang(tmp_path, [SLEEP, SLEEP], max_starts=2).run(looking)
    assert caught.value.kind == "starts"
    assert [number for number, _, _ in looking.over] == [1, 1, 2, 2]


def test_time_that_is_up_ends_every_process_of_every_node(tmp_path: Path) -> None:
    looking = Onlooking()
    with pytest.raises(ChildError, match="was not finished after") as caught:
        gang(tmp_path, [DEAF, SLEEP], timeout=1.0).run(looking)
    assert caught.value.kind == "timeout"
    assert_nothing_lives(looking)


def test_an_exception_leaves_no_process_of_any_node(tmp_path: Path) -> None:
    def stop(launch: Launch) -> None:
        if all_ready(looking.launches) and len(looking.launches) == 3:
            raise KeyboardInterrupt

    looking = Onlooking(stop)
    with pytest.raises(KeyboardInterrupt):
        gang(tmp_path, [SLEEP, DEAF, SLEEP]).run(looking)
    assert_nothing_lives(looking)


class StandIn:
    """A launch whose end the test decides."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.signals: list[int] = []
        self.killed = 0

    def signal(self, number: int) -> bool:
        self.signals.append(number)
        return True

    def kill(self) -> None:
        self.killed += 1
        self.returncode = -9


def parting(count: int = 3) -> tuple[Any, list[StandIn], FakeClock]:
    clock, launches = FakeClock(), [StandIn() for _ in range(count)]
    everybody: Any = launches
    return Parting(everybody, 45.0, clock), launches, clock


def done_to(launches: list[StandIn]) -> list[tuple[int, int]]:
    return [(len(one.signals), one.killed) for one in launches]


def test_nobody_is_told_to_leave_while_all_live_or_some_are_finished() -> None:
    rule, nodes, clock = parting()
    rule.press()
    nodes[0].returncode = 0
    rule.press()
    clock.advance(10_000)
    rule.press()
    assert done_to(nodes) == [(0, 0), (0, 0), (0, 0)]


@pytest.mark.parametrize("code", [-9, -15, 1, 11, 78])
def test_the_others_are_told_at_once_and_only_once_when_a_node_is_lost_or_failed(code: int) -> None:
    rule, nodes, clock = parting()
    nodes[1].returncode = code
    rule.press()
    clock.advance(44.0)
    rule.press()
    assert done_to(nodes) == [(1, 0), (0, 0), (1, 0)]
    assert nodes[0].signals == [signal.SIGTERM]


def test_who_was_told_and_does_not_leave_is_killed() -> None:
    rule, nodes, clock = parting()
    nodes[1].returncode = -9
    rule.press()
    nodes[0].returncode = 75
    clock.advance(45.0)
    rule.press()
    assert done_to(nodes) == [(1, 0), (0, 0), (1, 1)]


def test_after_an_interruption_the_others_may_leave_by_themselves_first() -> None:
    rule, nodes, clock = parting()
    nodes[0].returncode = 75
    rule.press()
    clock.advance(44.0)
    rule.press()
    assert done_to(nodes) == [(0, 0), (0, 0), (0, 0)]
    nodes[1].returncode = 75
    clock.advance(1.0)
    rule.press()
    assert done_to(nodes) == [(0, 0), (0, 0), (1, 0)]
    clock.advance(45.0)
    rule.press()
    assert done_to(nodes) == [(0, 0), (0, 0), (1, 1)]


def test_a_node_that_is_lost_while_the_others_leave_hurries_them() -> None:
    rule, nodes, clock = parting()
    nodes[0].returncode = 75
    rule.press()
    clock.advance(5.0)
    nodes[1].returncode = -9
    rule.press()
    assert done_to(nodes) == [(0, 0), (0, 0), (1, 0)]


class Ordered:
    """A placement that gives these seats, and tells a start to leave once it is ready."""

    def __init__(self, *seats: Seat) -> None:
        self.seats = list(seats)
        self.ready = False

    def next_seat(self) -> Seat | None:
        self.ready = False
        return self.seats.pop(0) if self.seats else None

    def leave_now(self) -> int | None:
        return signal.SIGTERM if self.ready else None


def test_a_placement_says_where_each_start_goes_and_when_it_leaves(tmp_path: Path) -> None:
    ordered = Ordered(Seat("p4d/a/spot", 8.0), Seat("p4d/on-demand", 24.0))

    def look(launch: Launch) -> None:
        ordered.ready = "ready" in launch.log_tail()

    looking = Onlooking(look)
    node = Node([sys.executable, "-c", SLEEP])
    launches = LocalGang(
        lambda: [node], AgentSettings(grace="5", max_restarts=0), name="train", logs=tmp_path / "logs",
        timeout=PATIENCE, placement=ordered,
    ).run(looking)  # fmt: skip
    assert [launch.returncode for launch in launches] == [75, 75]
    assert ordered.seats == []


def test_who_is_told_to_leave_by_the_placement_and_does_not_is_killed() -> None:
    rule, nodes, clock = parting()
    rule.tell(signal.SIGTERM)
    clock.advance(44.9)
    rule.press()
    assert done_to(nodes) == [(1, 0)] * 3
    nodes[0].returncode = 75
    clock.advance(0.2)
    rule.press()
    assert done_to(nodes) == [(1, 0), (1, 1), (1, 1)]
