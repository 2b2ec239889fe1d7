"""A launcher of several ranks and the ranks themselves, without torch: it makes 1 of any end but 0, as torchrun does.

Usage: launcher_of_ranks.py JSON [RANK], where JSON gives the fields of :class:`Plan`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from rank_trainer import RankTrainer

from unbroken.journal import Journal, Lease, Origin
from unbroken.journal.events import RunFinished
from unbroken.link.channel import connect
from unbroken.link.messages import (
    LOST_RANK,
    PROTOCOL,
    Bye,
    Hello,
    Message,
    Restored,
    SlotCommitted,
    SlotFailed,
    Stop,
    StopAgreed,
    Stopping,
    Welcome,
)
from unbroken.store import open_store

T = TypeVar("T")


class Plan(msgspec.Struct):
    uri: str
    shared: str
    """Folder through which the ranks of all nodes meet."""
    here: list[int]
    world_size: int = 4
    until: int = 8
    """Step at which the run is finished; 0: goes on until a notice."""


class Rank:
    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self.shared = Path(plan.shared)
        channel = connect(Path(os.environ["UNBROKEN_SOCKET"]), timeout=20)
        lease = Lease(0, "") if rank == 0 else self.joined()
        channel.send(
            Hello(PROTOCOL, plan.uri, os.getpid(), rank, plan.world_size, "", lease.attempt, lease.claim, rank > 0)
        )
        messages = channel.messages()
        answer = next(messages)
        assert isinstance(answer, Welcome), answer
        self.trainer = RankTrainer(plan.uri, rank, plan.world_size, channel, messages, answer)
        for _ in range(answer.slots):
            next(messages)
            os.close(channel.take_descriptor())
        if rank == 0:
            write(self.shared / "attempt", msgspec.json.encode((answer.attempt, answer.claim)))
        channel.send(Restored(0, 0.0, 0))
        say(f"rank {rank} of attempt {answer.attempt}")

    def joined(self) -> Lease:
        data = wait_for(lambda: read(self.shared / "attempt"))
        attempt, claim = msgspec.json.decode(data, type=tuple[int, str])
        return Lease(attempt, claim)

    def train(self) -> int:
        self.save(4)
        if self.plan.until:
            self.save(8)
            if self.rank == 0:
                wait_for(lambda: read(self.shared / "others-finished"))
                journal = Journal.open(open_store(self.plan.uri))
                journal.append(RunFinished(8), Origin("here", os.getpid()), self.trainer.lease)
            return self.leave("finished", 8, 0)
        return self.stop()

    def stop(self) -> int:
        """The first rank that hears of a notice lets the others know."""
        channel, told = self.trainer.channel, self.shared / "stop"
        channel._socket.settimeout(0.05)
        heard: Message | None = None
        while heard is None and not told.exists():
            heard = next(self.trainer.channel.messages(), None)
        if isinstance(heard, Stop):
            write(told, msgspec.json.encode(heard))
        else:
            stop = msgspec.json.decode(wait_for(lambda: read(told)), type=Stop)
            channel.send(StopAgreed(stop.source, stop.reason, stop.deadline))
        channel._socket.settimeout(20)
        channel.send(Stopping(9))
        self.save(9)
        return self.leave("interrupted", 9, 75)

    def save(self, step: int) -> None:
        self.trainer.save(step, step % 2)
        for heard in self.trainer.channel.messages():
            say(f"rank {self.rank} heard {type(heard).__name__}")
            if isinstance(heard, SlotCommitted):
                return
            if isinstance(heard, SlotFailed):
                self.trainer.channel.send(Bye("failed", step, "ChildError", heard.message, 1, kind=LOST_RANK))
                sys.exit(1)
        raise AssertionError("no answer came")

    def leave(self, outcome: str, step: int, code: int) -> int:
        self.trainer.channel.send(Bye(outcome, step, exit_code=code))
        self.trainer.channel.close()
        return code


def launch(plan: Plan) -> int:
    command = [sys.executable, __file__, sys.argv[1]]
    workers = [subprocess.Popen([*command, str(rank)]) for rank in plan.here]
    codes = [worker.wait() for worker in workers]
    if 0 not in plan.here:
        write(Path(plan.shared) / "others-finished", b"yes")
    return 1 if any(codes) else 0


def wait_for(look: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + 30
    while (found := look()) is None:
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.02)
    return found


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def write(path: Path, data: bytes) -> None:
    fresh = path.with_name(f"{path.name}-{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    sys.exit(Rank(plan, int(sys.argv[2])).train() if len(sys.argv) > 2 else launch(plan))
