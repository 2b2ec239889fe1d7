"""What the policies are worth on published traces: spot hours, cost, and how much of greedy's gap each closes.

    python benchmarks/policies.py TRACES/skypilot-2022/*.json --gap-seconds 300 --ratio 0.8

The traces are not part of this project (they have no licence): name the files. ``--gap-seconds`` replaces the length of
a tick that the files give. Work 48 h, changeover 0.2 h, on-demand three times the price of spot, nothing saved or
lost. The programme learns from the half of a trace on which it is not judged.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unbroken.policy.decision import Terms
from unbroken.simulate.formats import read_trace
from unbroken.simulate.omniscient import omniscient_costs
from unbroken.simulate.replay import World
from unbroken.simulate.study import BOUND, Piece, Question, ask

DEADLINE_KEEPERS = ("on-demand", "greedy", "uniform", "uniform-plain", "programme")
WORK, CHANGEOVER, PRICE_RATIO = 48.0, 0.2, 3.0
NUDGE = 0.01
"""Change of the price of spot by which the omniscient's spot hours are found: they are the slope of the cost."""


def measure(files: list[Path], ratio: float, gap: float | None, starts: int, bound_starts: int, processes: int) -> Any:
    """The figures of one cell: all traces, one ratio of work to time."""
    traces = [read_trace(path) for path in files]
    traces = [replace(trace, gap=gap / 3600.0) for trace in traces] if gap else traces
    worlds = [(trace.name, World.of([trace], PRICE_RATIO, 1.0)) for trace in traces]
    terms = Terms(WORK, WORK / ratio, CHANGEOVER, PRICE_RATIO, 1.0, period=max(trace.gap for trace in traces))
    question = Question(worlds, terms, DEADLINE_KEEPERS, starts=starts, bound_starts=bound_starts)
    pieces = ask(question, processes)
    bound = _all(pieces, BOUND, "cost")
    known = np.isfinite(bound)
    greedy = _all(pieces, "greedy", "cost")[known].mean() - bound[known].mean()
    cell: dict[str, Any] = {
        "ratio": ratio,
        "traces": len(traces),
        "starts": len(bound),
        "bound_starts": int(known.sum()),
    }
    for policy in DEADLINE_KEEPERS:
        cost = _all(pieces, policy, "cost")
        cell[policy] = {
            "spot_hours": round(float(_all(pieces, policy, "spot").mean()), 2),
            "cost": round(float(cost.mean()), 2),
            "gap_closed": round(1.0 - float(cost[known].mean() - bound[known].mean()) / float(greedy), 3),
            "misses": int((_all(pieces, policy, "finish") > terms.allowed + 1e-6).sum()),
        }
    cell[BOUND] = {"cost": round(float(bound[known].mean()), 2), "spot_hours": round(_spot_hours(question), 2)}
    return cell


def _all(pieces: list[Piece], policy: str, what: str) -> Any:
    return np.concatenate([getattr(piece.outcomes, what) for piece in pieces if piece.unit.policy == policy])


def _spot_hours(question: Question) -> float:
    """Of the omniscient, on average: how its cost changes with the price of spot."""
    slopes = []
    for _, world in question.worlds:
        for fold in range(len(question.folds(world))):
            starts = question.starts_in(world, fold)[:: 2 * question.bound_every()]
            dear, cheap = (
                omniscient_costs(replace(world, prices=world.prices * factor), starts, question.terms)
                for factor in (1.0 + NUDGE, 1.0 - NUDGE)
            )
            slopes.append((dear - cheap) / (2.0 * NUDGE))
    return float(np.concatenate(slopes).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--ratio", type=float, action="append", help="work to time; repeat it")
    parser.add_argument("--gap-seconds", type=float)
    parser.add_argument("--starts", type=int, default=2400)
    parser.add_argument("--bound-starts", type=int, default=240)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    for ratio in asked.ratio or [0.8]:
        cell = measure(asked.files, ratio, asked.gap_seconds, asked.starts, asked.bound_starts, asked.processes)
        print(json.dumps(cell))


if __name__ == "__main__":
    main()
