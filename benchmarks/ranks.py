"""What a save costs several ranks of one machine, against one process that saves the same bytes.

    python benchmarks/ranks.py --size 1GB --repetitions 3 --out results.json

Real torchrun, real agents, a folder store. All of them share the cores and the memory of one machine, which real ranks
on several machines do not: what is shown is what being many costs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from results import host_facts
from rich import box
from rich.console import Console
from rich.table import Table
from save_restore import parse_size

from unbroken.journal import Journal
from unbroken.store import open_store

CASES = {
    "one process": ("replicated", 1),
    "2 ranks, each half (sharded)": ("sharded", 2),
    "4 ranks, each a quarter (sharded)": ("sharded", 4),
    "2 ranks, each all (replicated)": ("replicated", 2),
}
SAVES, EVERY, LIMIT = 4, 14, 600.0


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=parse_size, default="1GB", help="of the whole state")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--every", type=int, default=EVERY, help="steps from save to save")
    parser.add_argument("--out", default="", help="write every sample here, as JSON")
    given = parser.parse_args()
    size = given.size
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    copies = []
    for repetition in range(given.repetitions):
        names = list(CASES)
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            print(f"repetition {repetition + 1} of {given.repetitions}: {name}", file=sys.stderr, flush=True)
            samples[name].append(measure(*CASES[name], size, given.every))
        copies.append(memcpy(size))
    copy = statistics.median(copies)
    show(samples, copy, size)
    if given.out:
        facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "host": host_facts(), "size": size}
        Path(given.out).write_text(json.dumps({**facts, "memcpy": copy, "samples": samples}, indent=1) + "\n")


def measure(layout: str, count: int, size: int, every: int) -> dict[str, float]:
    """One training; of its saves after the first, medians. Of the ranks the slowest counts."""
    folder = Path(tempfile.mkdtemp(prefix="unbroken-ranks-"))
    try:
        uri = str(folder / "run")
        program = Path(__file__).with_name("ranks_program.py")
        subprocess.run(
            [
                sys.executable, "-m", "unbroken", "run", "--runtime-dir", folder / "r", "--max-restarts", "0", "--",
                sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
                program, uri, layout, str(size), str(every), str(SAVES), str(folder),
            ],
            check=True, timeout=LIMIT, stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
        )  # fmt: skip
        ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
        commits = {record.step: record.at for record in Journal.open(open_store(uri)).state.commits}
        durable = [commits[int(step)] - max(rank["boundary"][step] for rank in ranks) for step in ranks[0]["boundary"]]
        return {
            "stall": statistics.median(
                [max(each) for each in zip(*(rank["stall"] for rank in ranks), strict=True)][1:]
            ),
            "lost": statistics.median([max(each) for each in zip(*(rank["lost"] for rank in ranks), strict=True)][1:]),
            "durable": statistics.median(durable[1:]),
            "step": max(rank["calm"] for rank in ranks),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def memcpy(size: int) -> float:
    """Seconds of a copy of the state into warm memory, with all threads of torch."""
    source, target = torch.ones(size // 4), torch.ones(size // 4)
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        target.copy_(source)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def show(samples: dict[str, list[dict[str, float]]], copy: float, size: int) -> None:
    table = Table(title=f"{size / 1e9:g} GB, later saves; one memcpy {copy:.3f} s", box=box.MARKDOWN)
    for column in ("", "stall of the slowest rank", "lost", "durable", "step"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in samples.items():
        medians = {key: statistics.median(each[key] for each in found) for key in found[0]}
        cells = [f"{medians[key]:.3f} s ({medians[key] / copy:.1f}x)" for key in ("stall", "lost", "durable")]
        table.add_row(name, *cells, f"{medians['step']:.3f} s")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
