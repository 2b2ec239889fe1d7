"""What a job file says to the agent of a node."""

from __future__ import annotations

import pytest

from unbroken.errors import ConfigError
from unbroken.job import Job, agent_environment, agent_settings, node_command, read_job

LEAST = "name: a\nrun: s3://b/a\ncommand: [python, a.py, --lr, '1']\n"


def job(more: str = "") -> Job:
    return read_job(LEAST + more)


def test_what_the_file_does_not_say_keeps_its_default() -> None:
    assert agent_settings(job()) == {"uri": "s3://b/a"}
    assert agent_environment(job()) == {}


def test_what_the_file_says_is_said_to_the_agent() -> None:
    text = "every: 10min\nkeep: last=3\ngrace: 95s\nnotices: {off: [gcp, azure], poll: 2s}\n"
    text += "limits: {max_restarts: 7, no_progress: 3}\n"
    assert agent_settings(job(text)) == {
        "uri": "s3://b/a", "every": "10min", "keep": "last=3", "grace": "95", "notices": "-gcp,-azure",
        "max_restarts": 7, "no_progress_limit": 3,
    }  # fmt: skip
    assert agent_environment(job(text + "env: {A: 1}\n")) == {"UNBROKEN_NOTICE_POLL": "2", "A": "1"}


def test_the_one_pool_and_its_price_are_known_and_of_several_none() -> None:
    prices = "prices: {on_demand: 3, spot: 1, currency: EUR}\n"
    found = agent_settings(job(prices + "pools: [{instance_type: t, zone: z, market: on-demand}]\n"))
    assert (found["pool"], found["price"], found["currency"]) == ("t/z/on-demand", 3, "EUR")
    assert agent_settings(job(prices + "pools: [{instance_type: t, price: 2}]\n"))["price"] == 2
    assert "price" not in agent_settings(job("pools: [{instance_type: t}]\n"))
    assert "pool" not in agent_settings(job(prices + "pools: [{instance_type: t}, {instance_type: u}]\n"))


def test_ranks_of_one_node_are_started_by_torchrun() -> None:
    assert node_command(job()) == ["python", "a.py", "--lr", "1"]
    words = node_command(job("ranks: {per_node: 4}\n"))
    assert words[:5] == ["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    assert words[-3:] == ["a.py", "--lr", "1"]


def test_several_nodes_are_not_one_machine() -> None:
    with pytest.raises(ConfigError, match="the job has 2 nodes, and this is one machine"):
        node_command(job("ranks: {nodes: 2}\n"))
