"""From replayed starts to a table, and to the best policy with how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unbroken.simulate.study import BOUND, Piece, Question

_RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """One policy with one cadence. Money in the job's currency for the whole run, hours."""

    policy: str
    cadence: str
    cost: float
    """Mean."""
    cost_p5: float
    cost_p95: float
    finish: float
    """Mean of the runs that finished."""
    finish_p95: float
    """Infinite where more than one in twenty never finished."""
    misses: int
    runs: int
    spot_share: float
    """Of the paid hours."""
    lost: float
    """Mean hours of training done again."""
    regret: float
    """Mean cost over the omniscient bound, less one, of the starts for which that was computed; NaN without any."""


@dataclass(frozen=True)
class Choice:
    """The cheapest row that met the deadline oftest."""

    row: Row
    sure: float
    """Share of resamples in which it is the cheapest of those that met the deadline as often."""
    runner_up: Row | None
    saves: tuple[float, float]
    """90 % interval of what it costs less than the runner-up, as a share of that one's cost."""
    blocks: int
    """Independent pieces of trace that this rests on."""


def rows_of(question: Question, pieces: Sequence[Piece]) -> list[Row]:
    """A row for each policy and cadence, in the order in which they were asked for."""
    bound = _costs(pieces, BOUND, "")
    return [
        _row(
            question, [piece for piece in pieces if (piece.unit.policy, piece.unit.cadence) == (policy, cadence)], bound
        )
        for policy in question.policies
        for cadence in question.cadences
    ]


def bound_of(pieces: Sequence[Piece]) -> float:
    """Mean cost of the omniscient; NaN where it was not asked for."""
    costs = _costs(pieces, BOUND, "")
    known = costs[np.isfinite(costs)]
    return float(known.mean()) if len(known) else math.nan


def _costs(pieces: Sequence[Piece], policy: str, cadence: str) -> Any:
    found = [piece.outcomes.cost for piece in pieces if (piece.unit.policy, piece.unit.cadence) == (policy, cadence)]
    return np.concatenate(found) if found else np.zeros(0)


def _row(question: Question, pieces: Sequence[Piece], bound: Any) -> Row:
    out = type(pieces[0].outcomes).joined([piece.outcomes for piece in pieces])
    ended = out.finish[np.isfinite(out.finish)]
    known = np.isfinite(bound) if len(bound) else np.zeros(len(out.cost), dtype=bool)
    paid = float((out.spot + out.on_demand).sum())
    return Row(
        policy=pieces[0].unit.policy,
        cadence=pieces[0].unit.cadence,
        cost=float(out.cost.mean()),
        cost_p5=float(np.quantile(out.cost, 0.05)),
        cost_p95=float(np.quantile(out.cost, 0.95)),
        finish=float(ended.mean()) if len(ended) else math.inf,
        finish_p95=float(np.quantile(out.finish, 0.95, method="higher")),
        misses=int(out.missed(question.terms.allowed).sum()),
        runs=len(out.cost),
        spot_share=float(out.spot.sum()) / paid if paid else 0.0,
        lost=float(out.lost.mean()),
        regret=float(out.cost[known].mean() / bound[known].mean() - 1.0) if known.any() else math.nan,
    )


def choose(question: Question, pieces: Sequence[Piece], rows: Sequence[Row], seed: int = 0) -> Choice:
    """The best row by replay.

    Starts within one run's time of each other share most of their world, so that blocks of them are resampled.
    """
    fewest = min(row.misses for row in rows)
    able = sorted((row for row in rows if row.misses == fewest), key=lambda row: row.cost)
    sums, sizes = _blocks(question, pieces, able)
    drawn = np.random.default_rng(seed).integers(0, len(sizes), (_RESAMPLES, len(sizes)))
    means = sums[:, drawn].sum(axis=2) / sizes[drawn].sum(axis=1)
    sure = float((means.argmin(axis=0) == 0).mean())
    if len(able) == 1:
        return Choice(able[0], sure, None, (math.nan, math.nan), len(sizes))
    saves = 1.0 - means[0] / means[1]
    interval = (float(np.quantile(saves, 0.05)), float(np.quantile(saves, 0.95)))
    return Choice(able[0], sure, able[1], interval, len(sizes))


def _blocks(question: Question, pieces: Sequence[Piece], rows: Sequence[Row]) -> tuple[Any, Any]:
    """Sums of cost, shape (rows, blocks), and the number of starts in each block."""
    sums: list[list[float]] = []
    sizes: list[int] = []
    for row in rows:
        line: list[float] = []
        sizes = []
        for piece in pieces:
            if (piece.unit.policy, piece.unit.cadence) != (row.policy, row.cadence):
                continue
            window = question.window(question.worlds[piece.unit.world][1])
            block = (piece.starts - piece.starts[0]) // window
            for each in np.unique(block):
                line.append(float(piece.outcomes.cost[block == each].sum()))
                sizes.append(int((block == each).sum()))
        sums.append(line)
    return np.array(sums), np.array(sizes)
