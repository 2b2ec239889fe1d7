"""Ranks as processes: in a collective while a stop is agreed, and killed with real signals while one is."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 90.0
_PROGRAM = Path(__file__).with_name("agreement_program.py")

pytestmark = pytest.mark.slow


class _Process:
    """A rank and what it says."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def tell(self, command: str) -> None:
        """Give it a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def until(self, word: str, value: Any = None) -> dict[str, Any]:
        """Read on until it says ``word``, with this value if one is given."""
        give_up_at = time.monotonic() + PATIENCE
        while True:
            line = self._lines.get(timeout=max(0.0, give_up_at - time.monotonic()))
            assert line is not None, f"it ended without {word}: {self.said}"
            self.said.append(line)
            if word in line and value in (None, line[word]):
                return line

    def end(self) -> None:
        """Kill it if it is still there, and close everything."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)


@contextlib.contextmanager
def _processes(world_size: int, *group: str) -> Iterator[list[_Process]]:
    made = [_Process("0", str(world_size), "0", *group)]
    try:
        port = str(made[0].until("port")["port"])
        made += [_Process(str(rank), str(world_size), port, *group) for rank in range(1, world_size)]
        for each in made:
            each.until("begins", 1)
        yield made
    finally:
        for each in made:
            each.end()


def test_a_stop_is_agreed_while_ranks_wait_in_a_collective_for_a_slow_one(tmp_path: Path) -> None:
    with _processes(3, str(tmp_path / "group")) as each:
        for rank in each[:2]:
            rank.tell("free")
        each[2].tell("allow 4")  # and then works long on step 5, for which the others wait in all_reduce
        for rank in each:
            rank.until("begins", 5)
        each[1].tell('propose stop {"source": "ec2"}')
        each[2].tell("propose stop {}")
        each[2].tell("free")
        stops = [rank.until("stop") for rank in each]
        assert len({stop["stop"] for stop in stops}) == 1
        assert all(stop["agreed"] for stop in stops)
        for rank in each:
            rank.until("closed")
            assert rank.process.wait(PATIENCE) == 0
            assert not any("lost" in line for line in rank.said)


def test_a_rank_killed_while_a_stop_is_agreed_leaves_the_others_with_a_stop_of_their_own() -> None:
    with _processes(3) as each:
        each[2].process.send_signal(signal.SIGSTOP)  # so that it cannot have answered when it is killed
        each[1].tell('propose stop {"source": "sigterm"}')
        for rank in each[:2]:
            rank.tell("free")
            rank.until("enters")  # the round is open
        each[2].process.kill()
        for rank in each[:2]:
            stop = rank.until("stop")
            assert not stop["agreed"]
            assert stop["data"] == {"source": "sigterm"}
            rank.until("closed")
            assert rank.process.wait(PATIENCE) == 0


def test_a_rank_killed_is_told_to_the_others_though_their_loops_hang() -> None:
    with _processes(3) as each:
        each[2].process.kill()
        for rank in each[:2]:  # in a step that does not end
            assert rank.until("lost")["lost"].startswith("rank 2 (")
            rank.tell("free")
            assert "rank 2 (" in rank.until("error")["error"]
            rank.until("closed")
            assert sum("lost" in line for line in rank.said) == 1


def test_a_process_that_ends_without_leaving_in_order_is_told_to_the_others_and_keeps_its_exit_code() -> None:
    with _processes(3) as each:
        each[1].tell("crash")
        for rank in (each[0], each[2]):
            lost = rank.until("lost")["lost"]
            assert lost.startswith("rank 1 (")
            assert lost.endswith("ended: its process ended without closing the run")
        assert each[1].process.wait(PATIENCE) == 1


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_when_the_host_of_the_store_is_gone_the_others_hear_of_it_and_a_stop_is_their_own(sign: signal.Signals) -> None:
    with _processes(3) as each:
        each[0].process.send_signal(sign)
        each[2].tell('propose stop {"source": "ec2"}')
        for rank in each[1:]:
            assert "rank 0" in rank.until("lost")["lost"]
        each[2].tell("free")
        stop = each[2].until("stop")
        assert not stop["agreed"]
        assert stop["data"] == {"source": "ec2"}
        each[2].until("closed")
