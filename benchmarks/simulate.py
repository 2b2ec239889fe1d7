"""How long a replay takes: 1,000 starts of six policies on a made-up trace of 45 days in ticks of 195 s.

python benchmarks/simulate.py --processes 2 --out results.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from results import host_facts

from unbroken.policy.choice import POLICIES
from unbroken.policy.decision import Terms
from unbroken.simulate.replay import World
from unbroken.simulate.study import Question, ask
from unbroken.simulate.trace import Trace

GAP = 195.0 / 3600.0


def made_up(days: float, seed: int = 0) -> Trace:
    """Stays of Weibull length, shape 0.7: 5 h up and 2.5 h down on average."""
    random, up, state = np.random.default_rng(seed), [], 1
    while len(up) * GAP < days * 24.0:
        hours = random.weibull(0.7) * (4.0 if state else 2.0)
        up += [state] * max(1, round(hours / GAP))
        state = 1 - state
    return Trace("made up", GAP, np.array(up[: int(days * 24.0 / GAP)]))


def measure(starts: int, days: float, processes: int, bound_starts: int) -> float:
    """Seconds, the starting of the processes included."""
    world = World.of([made_up(days)], 3.0, 1.0)
    terms = Terms(48.0, 60.0, 0.2, 3.0, 1.0, period=GAP)
    question = Question([("made up", world)], terms, POLICIES, starts=starts, bound_starts=bound_starts)
    began = time.perf_counter()
    ask(question, processes)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=1000)
    parser.add_argument("--days", type=float, default=45.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--bound-starts", type=int, default=40)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    result = {
        "policies": len(POLICIES),
        "starts": asked.starts,
        "days": asked.days,
        "processes": asked.processes,
        "seconds": round(measure(asked.starts, asked.days, asked.processes, 0), 2),
        "bound_starts": asked.bound_starts,
        "seconds_with_bound": round(measure(asked.starts, asked.days, asked.processes, asked.bound_starts), 2),
        "host": host_facts(),
    }
    print(json.dumps(result, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
