"""How saving and restoring grow with the number of ranks, on one machine: real metadata, hardly any bytes.

    python benchmarks/scale.py --out results.json

For each number of ranks a checkpoint is planned, recorded by every rank, committed, and read again by some ranks in
three layouts. The store is memory and counts requests; times are processor seconds of one process.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from counting_store import CountingStore
from results import host_facts
from rich import box
from rich.console import Console
from rich.table import Table
from scale_state import KINDS, Gang, objects_of, pretending

from unbroken.agent.common_save import FIRST_PAUSE, LONGEST_PAUSE
from unbroken.checkpoint import RankDurable, RankWriter, commit_ranks, find_rank_records, load_manifest
from unbroken.journal import CheckpointRecord, Journal, Lease, Origin, RunState
from unbroken.training.capture import capture
from unbroken.training.in_place import InPlaceRestore

STEP = 1
ORIGIN = Origin("host", 1)
STEEPER = 0.1
"""A growth whose exponent is so much above 1 is worse than linear; less is noise."""
WAITING = 2.0
"""Seconds for which the other agents wait for the commit, in the example."""

SHOWN = {
    "plan_s": ("planning: capture of a rank, s", "rank"),
    "record_s": ("packing, digests and record of a rank, s", "rank"),
    "record_bytes": ("record of a rank, mean, bytes", "rank"),
    "record_0_bytes": ("record of rank 0, bytes", "one"),
    "rank_requests": ("requests of a rank for a save", "rank"),
    "find_s": ("finding and reading the records, s", "one"),
    "commit_s": ("merge and commit, s", "one"),
    "commit_requests": ("requests of the agent that commits", "one"),
    "look_requests": ("requests of another agent, 2 s", "node"),
    "manifest_bytes": ("manifest, bytes", "one"),
    "save_requests": ("requests of all for a save", "one"),
    "full_s": ("reading all records (verify, show), s", "one"),
    "full_requests": ("the same, requests", "one"),
    "full_bytes": ("the same, bytes", "one"),
    "same_s": ("same layout: planning of a rank, s", "rank"),
    "same_requests": ("same layout: metadata requests of a rank", "rank"),
    "same_bytes": ("same layout: metadata bytes of a rank", "rank"),
    "same_pack_requests": ("same layout: pack requests of a rank", "rank"),
    "half_s": ("half the ranks: planning of a rank, s", "rank"),
    "half_requests": ("half the ranks: metadata requests of a rank", "rank"),
    "half_bytes": ("half the ranks: metadata bytes of a rank", "rank"),
    "one_s": ("one process: planning, s", "one"),
    "one_requests": ("one process: metadata requests", "one"),
    "one_bytes": ("one process: metadata bytes", "one"),
}
"""What the table shows, and of how many such there are: each is of one process, of each node or of each rank."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--worlds", default="8,32,128,512,1024", help="numbers of ranks, one after another")
    parser.add_argument("--tensors", type=int, default=1000, help="of the state: a quarter are parameters")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--node", type=int, default=8, help="ranks of a node, which share an agent")
    parser.add_argument("--out", default="", help="write the result here, as JSON")
    options = parser.parse_args()
    worlds = [int(each) for each in options.worlds.split(",")]
    kinds = options.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    measured: dict[str, dict[int, dict[str, Any]]] = {}
    for kind in kinds:
        measured[kind] = {}
        for count in worlds:
            measured[kind][count] = Measurement(kind, count, options.tensors, options.node).run()
            gc.collect()
        show(kind, measured[kind])
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {**host_facts(), "torch": torch.__version__},
        "tensors": options.tensors,
        "ranks_per_node": options.node,
        "kinds": {
            kind: {"worlds": rows, "growth": growth(rows), "steeper": steeper(rows)} for kind, rows in measured.items()
        },
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


@dataclass
class Measurement:
    """One number of ranks."""

    kind: str
    count: int
    tensors: int
    node: int
    found: dict[str, Any] = field(default_factory=dict)
    store: CountingStore = field(default_factory=CountingStore)

    def run(self) -> dict[str, Any]:
        """Everything in :data:`SHOWN`, and requests by kind."""
        gang = Gang.of(self.kind, self.count, self.tensors)
        self._plan(gang)
        journal = Journal.create(self.store)
        lease = journal.claim(ORIGIN)
        durable = self._record(gang, journal, lease)
        self._commit(journal, lease, durable)
        record = journal.state.checkpoints[-1]
        self._read(record)
        return self.found

    def _plan(self, gang: Gang) -> None:
        times = []
        for rank in sorted({0, 1, self.count // 2, self.count - 1}):
            with pretending(rank, self.count) as ranks:
                objects = objects_of(self.kind, ranks, self.tensors)
                tries = [timed(lambda objects=objects, ranks=ranks: capture(objects, ranks)) for _ in range(4)]
                gang.check(rank, tries[0][1])
                times.append(min(seconds for seconds, _ in tries))  # the first fills what torch and the rules remember
        self.found["plan_s"] = max(times)

    def _record(self, gang: Gang, journal: Journal, lease: Lease) -> dict[int, RankDurable]:
        durable, times, sizes = {}, [], []
        self.store.forget()
        for rank in range(self.count):
            writer = RankWriter(journal, lease, ORIGIN, rank=rank, world_size=self.count)
            state = gang.state(rank, STEP)
            seconds, written = timed(lambda writer=writer, state=state: writer.write(state))
            times.append(seconds)
            sizes.append(self.store.size(written.ref.key))
            if rank < self.node:  # the agent that commits serves these, and has their records in memory
                durable[rank] = written
        by_kind = self._counted("rank_by_kind", per=self.count)
        self.found |= {
            "record_s": statistics.median(times),
            "record_bytes": statistics.mean(sizes),
            "record_0_bytes": sizes[0],
            "rank_requests": sum(by_kind.values()),
        }
        return durable

    def _commit(self, journal: Journal, lease: Lease, known: Mapping[int, RankDurable]) -> None:
        """As the agent of rank 0 does it, which has the records of its own ranks in memory; and the others' looks."""
        gc.collect()
        other = Journal.open(self.store)
        self.store.forget()
        other.require(lease)
        look = sum(self.store.requests.values())
        self.store.forget()
        args = (self.store, lease.attempt, STEP, self.count, known)
        self.found["find_s"], durable = timed(lambda: find_rank_records(*args))
        self.found["commit_s"], event = timed(lambda: commit_ranks(journal, lease, ORIGIN, durable))
        self.found["commit_requests"] = sum(self._counted("commit_by_kind").values())
        self.found["manifest_bytes"] = self.store.size(event.manifest)
        self.store.forget()
        other.require(lease)
        last = sum(self.store.requests.values())
        nodes = -(-self.count // self.node)
        self.found["look_requests"] = (looks(WAITING) * look + last) if nodes > 1 else 0
        self.found["save_requests"] = (
            self.found["rank_requests"] * self.count
            + self.found["commit_requests"]
            + self.found["look_requests"] * (nodes - 1)
        )

    def _read(self, record: CheckpointRecord) -> None:
        gc.collect()
        self.store.forget()
        self.found["full_s"], manifest = timed(lambda: load_manifest(self.store, record))
        del manifest
        self._metadata("full")
        for layout, count in (("same", self.count), ("half", self.count // 2), ("one", 1)):
            each = [
                self._restore(record, rank, count) for rank in sorted({0, 1, count // 2, count - 1}) if rank < count
            ]
            for name in each[0]:
                self.found[f"{layout}_{name}"] = max(one[name] for one in each)

    def _restore(self, record: CheckpointRecord, rank: int, count: int) -> dict[str, float]:
        """What one rank asks the store for, and the time to find out what it needs; all of it is read, and verified."""
        kind = self.kind if count > 1 else "plain"
        with pretending(rank, count) as ranks:
            objects = objects_of(kind, ranks, self.tensors)
            state = RunState(checkpoints=[record])
            with InPlaceRestore(self.store, state, objects, ranks=ranks) as restore:
                times = []
                for _ in range(4 if count > 1 else 1):
                    self.store.forget()
                    seconds, manifest = timed(lambda: restore.read_manifest(record))
                    times.append(seconds)
                metadata = Counter(self.store.requests), sum(self.store.received.values())
                self.store.forget()
                restore.apply(manifest, restore.load(record, manifest))
        for parameter in objects[1].value.param_groups[0]["params"]:  # type: ignore[attr-defined]
            if objects[1].value.state[parameter]["step"] != 1.0:  # type: ignore[attr-defined]
                raise AssertionError("what was restored is not what was saved")
        return {
            "s": min(times),
            "requests": sum(metadata[0].values()),
            "bytes": metadata[1],
            "pack_requests": self.store.requests["get packs"],
        }

    def _metadata(self, name: str) -> None:
        self.found[f"{name}_requests"] = sum(self.store.requests.values())
        self.found[f"{name}_bytes"] = sum(self.store.received.values())

    def _counted(self, name: str, per: int = 1) -> dict[str, float]:
        found = {kind: count / per for kind, count in sorted(self.store.requests.items())}
        self.found[name] = found
        return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of all threads, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def looks(seconds: float) -> int:
    """How often an agent looks into the journal for a commit that comes after so many seconds."""
    count, passed, pause = 0, 0.0, FIRST_PAUSE
    while passed < seconds:
        count, passed, pause = count + 1, passed + pause, min(2 * pause, LONGEST_PAUSE)
    return count


def growth(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """For each value, the exponent with which the sum over all who have it grows, from one number of ranks to the next.

    1 is linear. None where there was nothing before.
    """
    worlds = list(rows)
    found: dict[str, list[float | None]] = {}
    for name, (_, who) in SHOWN.items():
        found[name] = []
        for before, after in itertools.pairwise(worlds):
            one, two = (rows[count][name] * (1 if who == "one" else count) for count in (before, after))
            found[name].append(round(math.log(two / one) / math.log(after / before), 2) if one and two else None)
    return found


def steeper(rows: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """What grows worse than linearly between the two greatest numbers of ranks."""
    return [name for name, exponents in growth(rows).items() if exponents and (exponents[-1] or 0) > 1 + STEEPER]


def show(kind: str, rows: Mapping[int, Mapping[str, Any]]) -> None:
    """A table: a column for each number of ranks; behind each value the exponent, marked where it is above 1."""
    table = Table(title=f"{kind}: value (exponent of the sum over all ranks; ! worse than linear)", box=box.MARKDOWN)
    table.add_column("")
    for count in rows:
        table.add_column(f"{count} ranks", justify="right")
    exponents = growth(rows)
    for name, (text, _) in SHOWN.items():
        cells = []
        for number, row in enumerate(rows.values()):
            exponent = exponents[name][number - 1] if number else None
            mark = "" if exponent is None else f" ({exponent:.1f}{'!' if exponent > 1 + STEEPER else ''})"
            cells.append(_number(row[name]) + mark)
        table.add_row(text, *cells)
    Console(width=180).print(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


if __name__ == "__main__":
    main()
