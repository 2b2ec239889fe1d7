"""A command laid out as nodes and ranks under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unbroken.engine import Layout
from unbroken.errors import ConfigError

SCRIPT = """
import os, sys
names = "GROUP_RANK RANK WORLD_SIZE LOCAL_WORLD_SIZE GLOO_SOCKET_IFNAME OMP_NUM_THREADS WHO".split()
# One write: lines of two ranks never mix.
os.write(1, ("|".join([os.environ[name] for name in names] + sys.argv[1:]) + "\\n").encode())
"""


def test_one_rank_is_the_command_as_it_is() -> None:
    (node,) = Layout().lay_out(["./anything", "--at", "all"], [{"A": "1"}])
    assert (node.command, node.environment) == (["./anything", "--at", "all"], {"A": "1"})


def test_nodes_share_a_port_that_is_new_each_time() -> None:
    def ports() -> set[str]:
        nodes = Layout(3, 2).lay_out([sys.executable, "train.py"], [{}, {}, {}])
        return {part for node in nodes for part in node.command if part.startswith("--rdzv-endpoint=")}

    first, second = ports(), ports()
    assert len(first) == len(second) == 1


def test_what_the_user_says_about_threads_and_interfaces_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    (node, _) = Layout(2, 1).lay_out(["python", "train.py"], [{"GLOO_SOCKET_IFNAME": "eth0"}, {}])
    assert node.environment == {"GLOO_SOCKET_IFNAME": "eth0"}


@pytest.mark.parametrize(
    ("command", "training"),
    [
        (["python", "train.py", "-m", "big"], ["train.py", "-m", "big"]),
        (["/usr/bin/python3.11", "-u", "train.py"], ["train.py"]),
        (["python3", "-m", "package.train", "--lr=1"], ["-m", "package.train", "--lr=1"]),
    ],
)
def test_scripts_and_modules_follow_the_launcher(command: list[str], training: list[str]) -> None:
    (node,) = Layout(1, 2).lay_out(command, [{}])
    assert list(node.command[:3]) == [command[0], "-m", "torch.distributed.run"]
    assert list(node.command[-len(training) :]) == training
    assert {"--nnodes=1", "--nproc-per-node=2", "--max-restarts=0"} < set(node.command)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["bash", "train.sh"], "'bash' is not Python"),
        (["torchrun", "train.py"], "'torchrun' is not Python"),
        (["./train.py"], "'./train.py' is not Python"),
        (["python", "-m", "torch.distributed.run", "train.py"], "torch.distributed.run starts ranks itself"),
        (["python", "-c", "pass"], "'-c' after 'python'"),
        (["python", "-O", "train.py"], "'-O' after 'python'"),
        (["python", "-m"], "'-m' after 'python'"),
        (["python"], "'nothing' after 'python'"),
        ([], "'nothing' is not Python"),
    ],
)
def test_what_torchrun_cannot_start_is_refused_and_said(command: list[str], words: str) -> None:
    Layout().check(command)  # one rank needs no launcher
    with pytest.raises(ConfigError, match=words) as caught:
        Layout(1, 2).check(command)
    assert caught.value.kind == "command"
    assert "without torchrun" in caught.value.hint


def test_more_nodes_than_addresses_are_refused() -> None:
    with pytest.raises(ConfigError, match="300 nodes"):
        Layout(300, 1).check(["python", "train.py"])


@pytest.mark.slow
def test_real_torchruns_meet_and_number_their_ranks(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    nodes = Layout(2, 2).lay_out([sys.executable, str(script), "--lr", "1"], [{"WHO": "first"}, {"WHO": "second"}])
    plain = {name: value for name, value in os.environ.items() if name not in ("GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS")}
    processes = [
        subprocess.Popen(node.command, env={**plain, **node.environment}, stdout=subprocess.PIPE, text=True)
        for node in reversed(nodes)  # numbered by what they are told, not by who comes first
    ]
    try:
        said = [process.communicate(timeout=60)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(said[0] + said[1]) == [
        f"{node}|{rank}|4|2|lo|1|{who}|--lr|1"
        for node, rank, who in [(0, 0, "first"), (0, 1, "first"), (1, 2, "second"), (1, 3, "second")]
    ]
