"""A node that is gone without a word: the others end, and the next start resumes to the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from launches import MakeRanks as Make
from launches import Ranks


def test_survivors_of_a_lost_node_end_and_the_next_start_ends_as_if_nothing_had_happened(
    make_ranks: Make, truth: Callable[[str], Ranks]
) -> None:
    ranks = make_ranks(nodes=2, each=1, delay=0.1)
    nodes = ranks.start()
    ranks.wait_for_step(6)
    nodes[1].lose()
    assert nodes[0].wait() == 1, nodes[0].text()
    assert "notice" not in nodes[0].text()
    assert ranks.committed[-1] in (4, 8)
    ranks.delay = 0.0
    assert ranks.train() == [0, 0], "\n".join(node.text() for node in ranks.started[2:])
    assert ranks.journal.state.finished_step == 12
    undisturbed = truth("ddp")
    assert ranks.final == undisturbed.final
    assert all(ranks.curve(rank) == undisturbed.curve(rank) for rank in range(2))


@pytest.mark.soak
@pytest.mark.parametrize("lost", [0, 1])
def test_node_that_is_left_finishes_what_both_have_begun(make_ranks: Make, lost: int) -> None:
    ranks = make_ranks(nodes=2, each=2, layout="fsdp", delay=0.1)
    nodes = ranks.start()
    ranks.wait_for_step(6)
    nodes[lost].lose()
    assert nodes[1 - lost].wait() == 1, nodes[1 - lost].text()
    stood = ranks.committed[-1]
    uri = shutil.copytree(ranks.uri, ranks.folder / "copy")
    alone = make_ranks(uri=str(uri), nodes=1, each=2, layout="fsdp")
    assert alone.train() == [0]
    assert alone.journal.state.finished_step == 12
    assert [step for _, step, _ in alone.steps(0)] == list(range(stood, 12))


@pytest.mark.soak
@pytest.mark.parametrize("failing", [0, 2])
def test_rank_that_fails_ends_first_and_is_named_by_agent_and_torchrun(make_ranks: Make, failing: int) -> None:
    ranks = make_ranks(nodes=1, each=3, delay=0.1, failing=failing)
    (node,) = ranks.start()
    assert node.wait() == 1
    text = node.text()
    assert f"attempt 1 ended: rank {failing}: ValueError: made to fail" in text
    cause = text[text.index("Root Cause") :]
    assert f"rank      : {failing} " in cause
