"""One rank as a process: trains under an agreement and says on stdout, a JSON object a line, what happens.

    python agreement_program.py RANK WORLD PORT [gloo:PATH]

With PORT 0 it is rank 0, hosts the store and says where. It reads commands from stdin: ``allow N`` lets the steps up
to N end, ``propose KIND JSON`` proposes, ``free`` lets all steps end, ``crash`` raises in the loop.
With gloo each step ends with an all_reduce.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import torch
import torch.distributed as dist

from unbroken.clock import SYSTEM_CLOCK
from unbroken.errors import StoreError
from unbroken.training.agreement import Agreement, Outcome
from unbroken.training.rank_store import RankStore

_FREE = 1 << 40


def say(**what: Any) -> None:
    """One line to the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Program:
    """The loop, and the thread that obeys the test."""

    def __init__(self, rank: int, world_size: int, port: int, group: str) -> None:
        if rank == 0:
            store = RankStore.serve(world_size)
            say(port=store.port)
        else:
            store = RankStore.join("127.0.0.1", port, rank, world_size)
        if group:
            dist.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=world_size)
        self.store, self.collective = store, bool(group)
        self.agreement = Agreement(
            store, rank, world_size, clock=SYSTEM_CLOCK, on_lost=lambda text: say(lost=text),
            answer_seconds=2.0, beat_seconds=0.1, lost_seconds=3.0,
        )  # fmt: skip
        self._may = 0
        self._crash = False
        self._moved = threading.Condition()
        threading.Thread(target=self._obey, daemon=True).start()

    def run(self) -> None:
        """Train until a stop."""
        try:
            stop = self._train()
            say(stop=stop.step, agreed=stop.agreed, data=stop.data)
        except StoreError as error:
            say(error=error.message)
        self.agreement.close(5.0)
        self.store.close()
        say(closed=True)

    def _train(self) -> Outcome:
        step = 0
        while True:
            while True:
                self.agreement.begun = step + 1
                if not self.agreement.flag:
                    break
                say(enters=step)
                outcome = self.agreement.enter(step)
                if outcome is None:
                    break
                if outcome.kind == "stop":
                    return outcome
                say(save=outcome.step)
            step += 1
            self._work(step)

    def _work(self, step: int) -> None:
        say(begins=step)
        with self._moved:
            self._moved.wait_for(lambda: self._may >= step, 60.0)
        if self._crash:
            raise RuntimeError("as the test wants it")
        time.sleep(0.002)
        if self.collective:
            dist.all_reduce(torch.ones(4))

    def _obey(self) -> None:
        for line in sys.stdin:
            command, _, rest = line.strip().partition(" ")
            if command == "propose":
                kind, _, data = rest.partition(" ")
                self.agreement.propose(kind, json.loads(data or "{}"))
            else:
                with self._moved:
                    self._crash = command == "crash"
                    self._may = int(rest) if command == "allow" else _FREE
                    self._moved.notify_all()


if __name__ == "__main__":
    Program(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "".join(sys.argv[4:5])).run()
