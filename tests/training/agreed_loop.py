"""The loop that :class:`~unbroken.training.agreement_gate.Gate` asks for, and ranks as threads that run it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from unbroken.clock import SYSTEM_CLOCK
from unbroken.training.agreement import Agreement, Outcome
from unbroken.training.agreement_gate import Gate
from unbroken.training.rank_store import RankStore

PATIENCE = 60.0


def train(gate: Gate, work: Callable[[int], None], *, until: int, act: Callable[[Outcome], None], step: int = 0) -> int:
    """Train from ``step`` on; the completed steps when it was stopped or done. ``work`` gets the step it makes."""
    while step < until:
        while True:
            gate.begun = step + 1
            if not gate.flag:
                break
            outcome = gate.enter(step)
            if outcome is None:
                break
            act(outcome)
            if outcome.kind == "stop":
                return step
        work(step + 1)
        step += 1
    gate.finished(step)
    return step


def eventually(true: Callable[[], Any], what: str) -> None:
    """Wait until it is so."""
    give_up_at = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < give_up_at, f"{what} within {PATIENCE} s"
        time.sleep(0.001)


@dataclass
class Rank:
    """One rank as a thread: its steps wait for the test where the test says so."""

    agreement: Agreement
    outcomes: list[Outcome] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    ended_at: int | None = None
    error: BaseException | None = None
    working: int = 0
    _may: int = 0
    _moved: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    def start(self, *, until: int = 1 << 40) -> None:
        """Begin to train; no step ends before :meth:`allow`."""
        self._thread = threading.Thread(target=self._run, args=(until,), daemon=True)
        self._thread.start()

    def allow(self, step: int) -> None:
        """Let the steps up to this one end."""
        with self._moved:
            self._may = step
            self._moved.notify_all()

    def run_free(self) -> None:
        """Let all steps end, each after a moment, so that the other threads have their turn."""
        self.allow(1 << 40)

    def begin(self, step: int) -> None:
        """Bring the loop into the middle of ``step``."""
        self.allow(step - 1)
        eventually(lambda: self.working == step, f"rank {self.agreement.rank} works on step {step}")

    def join(self) -> None:
        """Wait for the end of the loop."""
        assert self._thread is not None
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"rank {self.agreement.rank} hangs in step {self.working}"

    def _work(self, step: int) -> None:
        with self._moved:
            self.working = step
            assert self._moved.wait_for(lambda: self._may >= step, PATIENCE), f"step {step} was never allowed"
            free = self._may > 1 << 39
        if free:
            time.sleep(0.001)

    def _run(self, until: int) -> None:
        try:
            self.ended_at = train(self.agreement, self._work, until=until, act=self.outcomes.append)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error


@contextlib.contextmanager
def stores(world_size: int) -> Iterator[list[RankStore]]:
    """One store of each rank, all in this process."""
    # torch asks for the name of each client's address; an unreachable name server must not hold up the test.
    os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"
    first = RankStore.serve(world_size)
    all_of_them = [first]
    try:
        for rank in range(1, world_size):
            all_of_them.append(RankStore.join("127.0.0.1", first.port, rank, world_size, seconds=PATIENCE))
        yield all_of_them
    finally:
        for store in reversed(all_of_them):
            store.close()


@contextlib.contextmanager
def ranks(world_size: int, *, close_seconds: float = PATIENCE, **seconds: float) -> Iterator[list[Rank]]:
    """Ranks whose agreements are made, whose loops are not started yet; closes them at once."""
    made: list[Rank] = []
    with stores(world_size) as each:
        try:
            for store in each:
                made.append(rank_of(store, **seconds))
            yield made
        finally:
            close([rank.agreement for rank in made], close_seconds)


def rank_of(store: RankStore, **seconds: Any) -> Rank:
    """A rank on this store."""
    lost: list[str] = []
    agreement = Agreement(store, store.rank, store.world_size, clock=SYSTEM_CLOCK, on_lost=lost.append, **seconds)
    return Rank(agreement, lost=lost)


def close(agreements: list[Agreement], seconds: float = PATIENCE) -> None:
    """Close all at the same time, as ranks do."""
    threads = [threading.Thread(target=each.close, args=(seconds,), daemon=True) for each in agreements]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "close hangs"
