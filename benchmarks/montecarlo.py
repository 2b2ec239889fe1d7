"""How long drawing trainings takes: 100,000 of the reference job on one core.

    python benchmarks/montecarlo.py

Prints the median and the range of interleaved repetitions, and the mean against the closed form.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace

from unbroken.policy.cost import Setting, best_setting, forecast
from unbroken.policy.montecarlo import draw

REFERENCE = Setting(work=48.0, price=25.0 / 3.0, hazard=3.0 / 48.0, restart=0.15, wait=1.0 / 6.0)
WAYS = {
    "usual saves": replace(REFERENCE, interval=0.5, stall=1.0 / 30.0, upload=1.0 / 30.0),
    "unbroken": best_setting(replace(REFERENCE, stall=5.0 / 3600.0, upload=0.025, notice_success=0.9)),
    "no checkpoints": REFERENCE,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainings", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=9)
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    means: dict[str, float] = {}
    for repetition in range(given.repetitions):
        for name, setting in WAYS.items():
            began = time.perf_counter()
            drawn = draw(setting, given.trainings, repetition)
            seconds[name].append(time.perf_counter() - began)
            means[name] = float(drawn.paid.mean())
    for name, setting in WAYS.items():
        each = sorted(seconds[name])
        off = means[name] / forecast(setting).paid - 1.0
        print(f"{name:<16} {statistics.median(each):.3f} s ({each[0]:.3f} to {each[-1]:.3f}), mean off by {off:+.2%}")


if __name__ == "__main__":
    main()
