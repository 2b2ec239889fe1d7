"""Trainings of several ranks below ``unbroken run -- torchrun``, on one machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from unbroken.clock import SYSTEM_CLOCK
from unbroken.journal import Journal
from unbroken.store import open_store

_HERE = Path(__file__).parent
_SECONDS = 180.0
_SOON = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
"""Of the rendezvous, which waits for half a minute else."""


@dataclass
class Node:
    """An agent with its torchrun."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> int:
        try:
            return self.process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still at work:\n{self.text()[-6000:]}") from None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def lose(self) -> None:
        """As if the machine had lost its power: nothing of it has time for a word."""
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # all stand still before the first one's end is noticed
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        self.process.wait(_SECONDS)


@dataclass
class Ranks:
    """A training of ``nodes`` x ``each`` ranks; every start of it."""

    folder: Path
    uri: str
    layout: str = "ddp"
    nodes: int = 1
    each: int = 2
    until: int = 12
    every: str = "4"
    delay: float = 0.0
    agents: bool = True
    failing: int = -1
    """The rank that raises an error in step 5."""
    elastic: bool = False
    """Whether torchrun goes on with one node at least, and trains elastic.py."""
    host: int = 0
    """Where the rendezvous of an elastic training is."""
    prefixes: tuple[list[str], ...] = ()
    """By node, what the command begins with: where it runs."""
    address: str = "127.0.0.1"
    """Of node 0."""
    interfaces: str = "lo"
    port: int = 0
    started: list[Node] = field(default_factory=list)

    def start(self) -> list[Node]:
        """Start every node; returns them."""
        self.port = _free_port()
        return [self.start_node(node) for node in range(self.nodes)]

    def train(self) -> list[int]:
        """Start every node and wait for its end; returns the exit codes."""
        return [node.wait() for node in self.start()]

    def steps(self, rank: int) -> list[tuple[int, int, str]]:
        """Attempt, step and loss of every step that a rank made."""
        path = self.folder / "out" / f"{rank}.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(a), int(s), loss) for a, s, loss in (line.split() for line in lines)]

    def curve(self, rank: int) -> dict[int, str]:
        """The loss of each step, as it was made last."""
        return {step: loss for _, step, loss in self.steps(rank)}

    def wait_for_step(self, step: int) -> None:
        """Return when rank 0 has made so many steps in the newest start."""
        deadline = SYSTEM_CLOCK.monotonic() + _SECONDS
        while max((made for _, made, _ in self.steps(0)), default=-1) < step:
            ended = [node.text()[-6000:] for node in self.started[-self.nodes :] if node.process.poll() is not None]
            assert not ended, "\n".join(ended)
            assert SYSTEM_CLOCK.monotonic() < deadline, self.started[-1].text()[-6000:]
            SYSTEM_CLOCK.sleep(0.02)

    @property
    def final(self) -> str:
        """Digest of the whole state at the end."""
        found: str = json.loads((self.folder / "out" / "final.json").read_text())["digest"]
        return found

    @property
    def journal(self) -> Journal:
        return Journal.open(open_store(self.uri))

    @property
    def committed(self) -> list[int]:
        return [record.step for record in self.journal.state.checkpoints]

    def start_node(self, node: int) -> Node:
        """Start one node of the newest start, or one that comes back."""
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        given = [str(self.until), self.every, str(out), str(self.delay)]
        if self.elastic:
            options = [
                f"--nnodes=1:{self.nodes}", "--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-id={self.port}",
                f"--rdzv-endpoint=127.0.0.1:{self.port}", f"--rdzv-conf=is_host={int(node == self.host)},{_SOON}",
                f"--local-addr=127.0.0.{100 + node}",
            ]  # fmt: skip
            script = [str(_HERE / "elastic.py"), self.uri, *given]
        else:
            options = [
                f"--nnodes={self.nodes}", f"--node-rank={node}", f"--master-addr={self.address}",
                f"--master-port={self.port}", "--max-restarts=0",
            ]  # fmt: skip
            script = [str(_HERE / "train.py"), self.uri, self.layout, *given]
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={self.each}"]
        return self._start([*torchrun, *options, *script], node)

    def _start(self, command: list[str], node: int) -> Node:
        if self.agents:
            runtime = self.folder / f"r{len(self.started)}"
            options = ["--runtime-dir", str(runtime), "--grace", "60s", "--max-restarts", "0"]
            command = [sys.executable, "-m", "unbroken", "run", *options, "--", *command]
        command = [*(self.prefixes[node] if self.prefixes else []), *command]
        log = self.folder / f"node{node}-{len(self.started)}.log"
        environment = {
            **os.environ, "FAILING": str(self.failing), "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.interfaces, "TORCH_CPP_LOG_LEVEL": "ERROR",
        }  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        found = Node(process, log)
        self.started.append(found)
        return found

    def close(self) -> None:
        for node in self.started:
            if node.process.poll() is None:
                node.lose()  # the command is in a session of its own


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class MakeRanks:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack, self._made = folder, stack, 0

    def __call__(self, **options: object) -> Ranks:
        """Another training; ``uri`` names a run that is there already."""
        self._made += 1
        folder = self._folder / f"t{self._made}"
        folder.mkdir()
        ranks = Ranks(folder, str(options.pop("uri", folder / "run")), **options)  # type: ignore[arg-type]
        self._stack.callback(ranks.close)
        return ranks
