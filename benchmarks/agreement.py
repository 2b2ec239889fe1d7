"""How long ranks take to agree on a step, and what a step pays for being ready to.

    python benchmarks/agreement.py --out results.json

Latency is from the proposal to the moment at which the last rank has the result, with loops that are in the middle of
a step. Ranks are threads of one process, or processes, all on this machine: one interpreter runs every rank that is a
thread, so that many of them say how the work grows and not how fast many machines are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from results import host_facts
from rich.console import Console

from unbroken.clock import SYSTEM_CLOCK
from unbroken.training.agreement import Agreement
from unbroken.training.rank_store import RankStore

SECONDS = 120.0


class TimedAgreement(Agreement):
    """Remembers when each result came."""

    def __init__(self, store: RankStore) -> None:
        self.results: list[float] = []
        self.came = threading.Condition()
        super().__init__(
            store, store.rank, store.world_size, clock=SYSTEM_CLOCK, on_lost=_lost,
            answer_seconds=SECONDS, lost_seconds=SECONDS,
        )  # fmt: skip

    def end_round(self, number: int, step: int | None, data: dict[str, Any], missing: tuple[int, ...] = ()) -> None:
        super().end_round(number, step, data, missing)
        with self.came:
            self.results.append(time.monotonic())
            self.came.notify_all()

    def wait(self, count: int) -> None:
        """Until ``count`` results have come; then the loop, which stands at step 0, deals with them."""
        with self.came:
            if not self.came.wait_for(lambda: len(self.results) >= count, SECONDS):
                raise SystemExit(f"rank {self.rank} has no result {count} after {SECONDS} s")
        while self.enter(0) is not None:
            pass
        self.begun = 0


def _lost(text: str) -> None:
    raise SystemExit(text)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="*", default=[8, 64, 256], help="ranks in one process")
    parser.add_argument("--processes", type=int, nargs="*", default=[4], help="ranks in a process each")
    parser.add_argument("--rounds", type=int, default=50, help="how many medians are taken over")
    parser.add_argument("--steps", type=int, default=20_000, help="in each chunk of the loop")
    parser.add_argument("--out", default="", help="write the result here, as JSON")
    parser.add_argument("--rank", nargs=3, type=int, help=argparse.SUPPRESS)  # rank, world size, port: one process
    options = parser.parse_args()
    # torch asks a name server for the name of each client's address; where there is none, that takes ten seconds.
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
    if options.rank:
        be_a_rank(*options.rank, options.rounds)
        return
    result = measure(options)
    show(result)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Latencies in milliseconds, costs in nanoseconds."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {**host_facts(), "torch": torch.__version__},
        "rounds": options.rounds,
        "threads": {str(ranks): _about(in_threads(ranks, options.rounds)) for ranks in options.threads},
        "processes": {str(ranks): _about(in_processes(ranks, options.rounds)) for ranks in options.processes},
        "step": step_cost(options.steps),
    }


def in_threads(ranks: int, rounds: int) -> list[float]:
    """Seconds of each round, ranks being threads of this process."""
    with _stores(ranks) as stores:
        agreements = [TimedAgreement(store) for store in stores]
        seconds = []
        for number in range(1, rounds + 2):
            began = time.monotonic()
            agreements[0].propose("save")
            for each in agreements:
                each.wait(number)
            seconds.append(max(each.results[-1] for each in agreements) - began)
        closing = [threading.Thread(target=each.close) for each in agreements]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
    return seconds[1:]  # in the first one the connections were new


def in_processes(ranks: int, rounds: int) -> list[float]:
    """Seconds of each round, ranks being processes."""
    store = RankStore.serve(ranks)
    command = [sys.executable, __file__, "--rounds", str(rounds), "--rank"]
    others = [
        subprocess.Popen([*command, str(rank), str(ranks), str(store.port)], stdout=subprocess.PIPE, text=True)
        for rank in range(1, ranks)
    ]
    try:
        proposed = lead(store, rounds)
        results = [json.loads(store.get(f"results/{rank}", SECONDS)) for rank in range(ranks)]
        for process in others:
            process.communicate(timeout=SECONDS)
    finally:
        for process in others:
            process.kill()
            process.wait()
        store.close()
    return [max(ended) - began for began, *ended in zip(proposed, *results, strict=True)][1:]


def be_a_rank(rank: int, ranks: int, port: int, rounds: int) -> None:
    """A process of :func:`in_processes`."""
    with contextlib.closing(RankStore.join("127.0.0.1", port, rank, ranks, seconds=SECONDS)) as store:
        agreement = TimedAgreement(store)
        store.set(f"ready/{rank}", b"")
        for number in range(1, rounds + 2):
            agreement.wait(number)
            store.set(f"has/{number}/{rank}", b"")
        store.set(f"results/{rank}", json.dumps(agreement.results).encode())
        agreement.close()


def lead(store: RankStore, rounds: int) -> list[float]:
    """Propose one round after the other; when each was proposed, on the clock that all processes share."""
    others = range(1, store.world_size)
    agreement = TimedAgreement(store)
    for rank in others:
        store.get(f"ready/{rank}", SECONDS)
    proposed = []
    for number in range(1, rounds + 2):
        proposed.append(time.monotonic())
        agreement.propose("save")
        agreement.wait(number)
        for rank in others:
            store.get(f"has/{number}/{rank}", SECONDS)
    store.set("results/0", json.dumps(agreement.results).encode())
    agreement.close()
    return proposed


def step_cost(steps: int, chunks: int = 50) -> dict[str, float]:
    """Nanoseconds of a step that only asks whether something is up, and of one that does nothing."""
    with _stores(1) as stores:
        agreement = TimedAgreement(stores[0])
        asking, empty = [], []
        for _ in range(chunks):
            asking.append(_asking(agreement, steps))
            empty.append(_empty(steps))
        agreement.close()
    ours, bare = statistics.median(asking) / steps * 1e9, statistics.median(empty) / steps * 1e9
    return {"asking_ns": round(ours, 1), "empty_ns": round(bare, 1), "added_ns": round(ours - bare, 1)}


def _asking(agreement: Agreement, steps: int) -> float:
    began = time.perf_counter()
    for step in range(steps):
        agreement.begun = step + 1
        if agreement.flag:
            agreement.enter(step)
    return time.perf_counter() - began


def _empty(steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        pass
    return time.perf_counter() - began


@contextlib.contextmanager
def _stores(ranks: int) -> Iterator[list[RankStore]]:
    first = RankStore.serve(ranks)
    stores = [first, *(RankStore.join("127.0.0.1", first.port, rank, ranks) for rank in range(1, ranks))]
    try:
        yield stores
    finally:
        for store in reversed(stores):
            store.close()


def _about(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1e3 * value for value in seconds)
    return {
        "median_ms": round(statistics.median(ordered), 3),
        "p95_ms": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
        "max_ms": round(ordered[-1], 3),
    }


def show(result: dict[str, Any]) -> None:
    """For people."""
    console = Console(highlight=False)
    kinds = ((kind, ranks, row) for kind in ("threads", "processes") for ranks, row in result[kind].items())
    for kind, ranks, row in kinds:
        console.print(
            f"{ranks} ranks as {kind}: agreed after {row['median_ms']:.1f} ms "
            f"(95 % below {row['p95_ms']:.1f} ms, at most {row['max_ms']:.1f} ms)"
        )
    step = result["step"]
    console.print(f"a step pays {step['added_ns']:.0f} ns for asking ({step['empty_ns']:.0f} ns is the empty loop)")


if __name__ == "__main__":
    main()
