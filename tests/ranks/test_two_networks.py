"""Two nodes with a network between them that can break: each in a network namespace of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from launches import MakeRanks as Make
from launches import Ranks

pytestmark = pytest.mark.soak

ADDRESSES = ("10.213.77.1", "10.213.77.2")
CABLE = "cable0"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def spaces() -> Iterator[list[str]]:
    """Names of two network namespaces that are joined by a cable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    names = [f"unbroken-{os.getpid()}-{number}" for number in range(2)]
    with ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ip("-n", names[0], "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", names[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", CABLE)
                ip("-n", name, "link", "set", CABLE, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
        yield names


@pytest.fixture
def make_nodes(make_ranks: Make, spaces: list[str]) -> Callable[..., Ranks]:
    """Makes trainings of two nodes, each in its namespace."""

    def make(**options: object) -> Ranks:
        prefixes = tuple(["ip", "netns", "exec", name] for name in spaces)
        return make_ranks(nodes=2, prefixes=prefixes, address=ADDRESSES[0], interfaces=CABLE, **options)

    return make


def test_interrupted_node_stops_the_other_over_the_network_and_both_end_as_if_it_had_not(
    make_nodes: Callable[..., Ranks],
) -> None:
    truth = make_nodes(each=1)
    assert truth.train() == [0, 0]
    ranks = make_nodes(each=1, delay=0.1)
    nodes = ranks.start()
    ranks.wait_for_step(5)
    nodes[1].process.send_signal(signal.SIGTERM)
    assert [node.wait() for node in nodes] == [75, 75], "\n".join(node.text() for node in nodes)
    ranks.delay = 0.0
    assert ranks.train() == [0, 0]
    assert ranks.final == truth.final
    assert all(ranks.curve(rank) == truth.curve(rank) for rank in range(2))


def test_ranks_that_no_longer_reach_each_other_end_and_the_next_start_goes_on(
    make_nodes: Callable[..., Ranks], spaces: list[str]
) -> None:
    ranks = make_nodes(each=2, delay=0.1, until=30)
    nodes = ranks.start()
    ranks.wait_for_step(6)
    ip("-n", spaces[1], "link", "set", CABLE, "down")  # no connection is closed: there is silence
    assert [node.wait() for node in nodes] == [1, 1], "\n".join(node.text() for node in nodes)
    assert "was not heard of for 60 s" in nodes[0].text() or "were not heard of for 60 s" in nodes[0].text()
    assert 4 in ranks.committed
    ip("-n", spaces[1], "link", "set", CABLE, "up")
    ranks.delay = 0.0
    assert ranks.train() == [0, 0]
    assert ranks.journal.state.finished_step == 30
