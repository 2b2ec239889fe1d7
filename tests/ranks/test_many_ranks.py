"""Real trainings of several ranks: gloo below torchrun below an agent, stopped by real signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import psutil
import pytest
from launches import MakeRanks as Make
from launches import Node, Ranks


def _same_curves(one: Ranks, other: Ranks) -> bool:
    ranks = range(one.nodes * one.each)
    return all(one.curve(rank) == other.curve(rank) for rank in ranks) and one.final == other.final


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_an_interrupted_training_of_two_ranks_ends_as_one_that_was_not(
    make_ranks: Make, truth: Callable[[str], Ranks], layout: str
) -> None:
    ranks = make_ranks(layout=layout, delay=0.1)
    (node,) = ranks.start()
    ranks.wait_for_step(5)
    node.process.send_signal(signal.SIGTERM)
    assert node.wait() == 75, node.text()
    stopped = ranks.journal.state.checkpoints[-1]
    assert stopped.step >= 6
    assert all(max(step for _, step, _ in ranks.steps(rank)) + 1 == stopped.step for rank in range(2))
    ranks.delay = 0.0
    assert ranks.train() == [0]
    assert ranks.journal.state.finished_step == 12
    assert _same_curves(truth(layout), ranks)


def test_one_node_that_is_interrupted_stops_all_at_the_same_step(make_ranks: Make) -> None:
    ranks = make_ranks(nodes=2, each=2, delay=0.1)
    nodes = ranks.start()
    ranks.wait_for_step(5)
    nodes[1].process.send_signal(signal.SIGTERM)
    assert [node.wait() for node in nodes] == [75, 75], "\n".join(node.text() for node in nodes)
    step = ranks.journal.state.checkpoints[-1].step
    assert [max(made for _, made, _ in ranks.steps(rank)) + 1 for rank in range(4)] == [step] * 4
    ranks.delay = 0.0
    assert ranks.train() == [0, 0]
    assert ranks.journal.state.finished_step == 12
    assert len(ranks.journal.state.trainings) == 2


def test_another_number_of_ranks_goes_on_from_the_same_state(make_ranks: Make) -> None:
    first = make_ranks(layout="fsdp", each=3, until=6)
    assert first.train() == [0]
    second = make_ranks(uri=first.uri, layout="ddp", each=2, until=6)
    assert second.train() == [0]
    assert second.final == first.final
    assert second.steps(0) == []


def test_ranks_that_start_their_own_agents_save_together(make_ranks: Make) -> None:
    ranks = make_ranks(agents=False)
    assert ranks.train() == [0]
    assert ranks.journal.state.finished_step == 12
    assert ranks.committed[-1] == 12
    assert len(ranks.journal.state.trainings) == 1


def test_a_rank_that_is_killed_ends_the_others_and_nothing_committed_is_lost(make_ranks: Make) -> None:
    ranks = make_ranks(delay=0.1)
    (node,) = ranks.start()
    ranks.wait_for_step(6)
    os.kill(_trainer(node, rank=1), signal.SIGKILL)
    assert node.wait() == 1, node.text()
    assert 4 in ranks.committed
    ranks.delay = 0.0
    assert ranks.train() == [0]
    assert ranks.journal.state.finished_step == 12


def test_a_cadence_in_time_saves_the_same_step_on_all_ranks(make_ranks: Make) -> None:
    ranks = make_ranks(every="1s", delay=0.1, until=40)
    assert ranks.train() == [0]
    assert len(ranks.committed) >= 3


def _trainer(node: Node, rank: int) -> int:
    for process in psutil.Process(node.process.pid).children(recursive=True):
        if process.environ().get("RANK") == str(rank) and "train.py" in " ".join(process.cmdline()):
            return process.pid
    raise AssertionError(f"rank {rank} is not there")
