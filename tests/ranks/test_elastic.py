"""Elastic torchrun: a node that is interrupted leaves, the other goes on alone, and takes in one that comes."""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from itertools import chain, groupby, islice
from typing import Any

import elastic
import pytest
import torch
from launches import MakeRanks as Make
from launches import Ranks

from unbroken.clock import SYSTEM_CLOCK
from unbroken.data import ResumableSampler


def rows(ranks: Ranks) -> dict[int, list[tuple[int, int, float, list[int]]]]:
    """By step: attempt, world size, loss and sample numbers, by rank; as each made it last."""
    found: dict[int, dict[int, Any]] = defaultdict(dict)
    for rank in range(2):
        path = ranks.folder / "out" / f"{rank}.txt"
        for line in path.read_text().splitlines() if path.exists() else []:
            attempt, step, count, loss, numbers = json.loads(line)
            found[step][rank] = (attempt, count, loss, numbers)
    return {step: [each[rank] for rank in sorted(each)] for step, each in sorted(found.items())}


def wait_for(ranks: Ranks, world_size: int, steps: int) -> None:
    """Return when so many steps were made by so many ranks."""
    deadline = SYSTEM_CLOCK.monotonic() + 180
    while sum(each[0][1] == world_size for each in rows(ranks).values()) < steps:
        assert any(node.process.poll() is None for node in ranks.started), ranks.started[-1].text()[-6000:]
        assert SYSTEM_CLOCK.monotonic() < deadline, "\n".join(node.text()[-6000:] for node in ranks.started)
        SYSTEM_CLOCK.sleep(0.1)


@pytest.mark.parametrize("leaver", [1, pytest.param(0, marks=pytest.mark.soak)])
def test_training_goes_on_in_place_while_a_node_leaves_and_another_comes(make_ranks: Make, leaver: int) -> None:
    ranks = make_ranks(nodes=2, each=1, elastic=True, host=1 - leaver, delay=0.1, every="10", until=150)
    nodes = ranks.start()
    wait_for(ranks, 2, 5)
    nodes[leaver].process.send_signal(signal.SIGTERM)
    assert nodes[leaver].wait() == 75, nodes[leaver].text()
    wait_for(ranks, 1, 2)
    comes, stays = ranks.start_node(leaver), nodes[1 - leaver]
    assert [comes.wait(), stays.wait()] == [0, 0], stays.text() + comes.text()
    assert "notice" not in stays.text()
    made = rows(ranks)
    lines = sum(len(path.read_text().splitlines()) for path in (ranks.folder / "out").glob("*.txt"))
    assert lines == sum(map(len, made.values()))  # no step was made twice
    assert list(made) == list(range(150))
    assert [count for count, _ in groupby(step[0][1] for step in made.values())] == [2, 1, 2]
    assert all(len(step) == step[0][1] for step in made.values())
    taken = [[number for *_, numbers in step for number in numbers] for step in made.values()]
    stream = ResumableSampler(elastic.SAMPLES, batch_size=1, seed=elastic.SEED, rank=0, world_size=1).indices()
    assert list(chain(*taken)) == [number for (number,) in islice(stream, sum(map(len, taken)))]
    _same_as_one_process(ranks, taken, list(made.values()))


@pytest.mark.soak
def test_all_leave_where_the_node_of_the_rendezvous_is_interrupted(make_ranks: Make) -> None:
    ranks = make_ranks(nodes=2, each=1, elastic=True, host=0, delay=0.1, every="10", until=150)
    nodes = ranks.start()
    wait_for(ranks, 2, 5)
    nodes[0].process.send_signal(signal.SIGTERM)
    assert [node.wait() for node in nodes] == [75, 75], nodes[1].text()
    assert ranks.committed[-1] == max(rows(ranks)) + 1


@pytest.mark.soak
def test_all_end_where_the_node_of_the_rendezvous_is_lost_and_start_again_from_the_checkpoint(make_ranks: Make) -> None:
    ranks = make_ranks(nodes=2, each=1, elastic=True, host=0, delay=0.1, every="4", until=20)
    nodes = ranks.start()
    wait_for(ranks, 2, 6)
    nodes[0].lose()
    assert nodes[1].wait() == 1, nodes[1].text()
    stood = ranks.committed[-1]
    again = ranks.start()
    assert [node.wait() for node in again] == [0, 0], again[0].text()
    assert f"training goes on from step {stood}" in again[0].text()


@pytest.mark.soak
def test_node_that_is_left_goes_on_in_place_when_the_other_is_lost_without_a_word(make_ranks: Make) -> None:
    ranks = make_ranks(nodes=2, each=1, elastic=True, host=0, delay=0.1, every="4", until=20)
    stays, goes = ranks.start()
    wait_for(ranks, 2, 6)
    goes.lose()
    assert stays.wait() == 0, stays.text()
    assert ranks.journal.state.finished_step == 20
    assert "notice" not in stays.text()


def _same_as_one_process(ranks: Ranks, taken: list[list[int]], made: list[Any]) -> None:
    data, model = elastic.dataset(), elastic.model()
    optimizer = elastic.optimizer_of(model)
    for numbers, step in zip(taken, made, strict=True):
        loss = elastic.loss_of(model, data[numbers])
        assert sum(each for _, _, each, _ in step) / len(step) == pytest.approx(loss.item(), rel=1e-3, abs=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = json.loads((ranks.folder / "out" / "weights.json").read_text())
    for mine, found in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(mine.detach(), torch.tensor(found), rtol=1e-3, atol=1e-4)
