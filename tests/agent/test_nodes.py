"""Two real agents with two real ranks each, under a launcher that makes 1 of every end but 0."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from unbroken.checkpoint import verify_checkpoint
from unbroken.journal.events import AttemptEnded, Notice

HERE = Path(__file__).parent


@pytest.fixture
def two_nodes(launcher: Any, tmp_path: Path) -> Any:
    def start(**plan: Any) -> list[Any]:
        agents = []
        for name, here in (("a", [0, 1]), ("b", [2, 3])):
            folder = launcher.folder / name
            given = {"uri": launcher.uri, "shared": str(tmp_path), "here": here, **plan}
            command = [sys.executable, str(HERE / "launcher_of_ranks.py"), json.dumps(given)]
            agents.append(launcher.agent(command, runtime_dir=str(folder), max_restarts=0))
        return agents

    return start


def events(launcher: Any, kind: type) -> list[Any]:
    journal = launcher.journal()
    assert journal.state.ignored == []
    return [entry.event for entry in journal.entries if isinstance(entry.event, kind)]


def committed(launcher: Any) -> list[int]:
    journal = launcher.journal()
    for record in journal.state.checkpoints:
        assert verify_checkpoint(journal.store, record).problems == []
    return [record.step for record in journal.state.commits]


def test_nodes_finish_together_though_the_other_ranks_are_through_before_rank_0_says_so(
    launcher: Any, two_nodes: Any
) -> None:
    agents = two_nodes()
    codes = [agent.wait() for agent in agents]
    assert codes == [0, 0], "\n\n".join(agent.output for agent in agents)
    assert committed(launcher) == [4, 8]
    assert [event.cause for event in events(launcher, AttemptEnded)] == ["finished"]
    assert "joined attempt 1" in agents[1].output


@pytest.mark.parametrize("struck", [0, 1])
def test_notice_on_one_node_makes_both_leave_with_75_and_is_journalled_once(
    launcher: Any, two_nodes: Any, struck: int
) -> None:
    agents = two_nodes(until=0)
    agents[struck].until("heard SlotCommitted")
    agents[struck].signal(signal.SIGTERM)
    codes = [agent.wait() for agent in agents]
    assert codes == [75, 75], "\n\n".join(agent.output for agent in agents)
    assert committed(launcher) == [4, 9]
    assert [event.source for event in events(launcher, Notice)] == ["sigterm"]
    assert [event.cause for event in events(launcher, AttemptEnded)] == ["interrupted"]
    assert "(heard by another rank)" in agents[1 - struck].output
