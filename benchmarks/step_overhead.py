"""What one step of ``run.steps`` costs while no save is due.

    python benchmarks/step_overhead.py --out results.json

A loop that does nothing is timed in chunks of steps, once over ``run.steps`` and once over ``range``; the difference
of the medians is what Unbroken adds to each step of a training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from results import host_facts
from rich.console import Console

import unbroken


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=300, help="how many medians are taken over")
    parser.add_argument("--steps", type=int, default=1000, help="in each chunk")
    parser.add_argument("--out", default="", help="write the result here, as JSON")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("UNBROKEN_")]:
        del os.environ[name]
    result = measure(options.chunks, options.steps)
    console = Console()
    console.print(
        f"a step of run.steps adds {result['added_us']:.2f} µs "
        f"({result['run_us']:.2f} µs, of which the empty loop {result['empty_us']:.3f} µs; "
        f"95 % of the chunks below {result['run_p95_us']:.2f} µs)",
        highlight=False,
    )
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def measure(chunks: int, steps: int) -> dict[str, Any]:
    """Microseconds per step: with Unbroken, without, and the difference."""
    until = (chunks + 2) * steps  # the first chunk and the last are not counted: they open and close the loop
    with tempfile.TemporaryDirectory(prefix="unbroken-benchmark-") as folder:
        with unbroken.Run(str(Path(folder, "run")), every="10h", state={"model": torch.nn.Linear(4, 4)}) as run:
            ours = _microseconds(run.steps(until=until), steps)
        empty = _microseconds(iter(range(until)), steps)
    run_us, empty_us = statistics.median(ours), statistics.median(empty)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {**host_facts(), "torch": torch.__version__},
        "chunks": chunks,
        "steps": steps,
        "added_us": round(run_us - empty_us, 4),
        "run_us": round(run_us, 4),
        "run_p95_us": round(sorted(ours)[int(0.95 * (len(ours) - 1))], 4),
        "empty_us": round(empty_us, 4),
    }


def _microseconds(loop: Iterable[int], steps: int) -> list[float]:
    """Per step, one value for each chunk of ``steps``."""
    marks = []
    for step in loop:
        if not step % steps:
            marks.append(time.perf_counter())
    return [(end - begin) / steps * 1e6 for begin, end in itertools.pairwise(marks[1:])]


if __name__ == "__main__":
    main()
