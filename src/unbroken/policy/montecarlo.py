"""Many trainings drawn at random, all at once: the distributions behind :mod:`unbroken.policy.cost`. Needs numpy.

Attempt after attempt, for all trainings together: a life is drawn, the attempt restarts, trains and saves until it is
over or done, and what was not durable is lost. Nothing of the closed form is used. Hours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from unbroken.policy.cost import Setting

_MOST_ATTEMPTS = 2_000
"""A training that was interrupted so often is left: its hours are infinite."""
_SUMMED = 40
"""Lives of attempts without saves that are drawn one by one; of more the sum is drawn (central limit)."""


@dataclass(frozen=True)
class Drawn:
    """Arrays, one value for each training: float64, infinite where it never ended."""

    paid: Any
    """Hours."""
    finish: Any
    """Hours since the launch."""
    lost: Any
    """Hours of training done again."""
    interruptions: Any

    def chance_by(self, hours: float) -> float:
        """Share that is finished by then."""
        return float((self.finish <= hours + 1e-9).mean())

    def quantiles(self, values: Any, shares: tuple[float, ...]) -> tuple[float, ...]:
        """Of one of the arrays; each is a value that was drawn."""
        return tuple(float(each) for each in np.quantile(values, shares, method="higher"))


def draw(setting: Setting, trainings: int, seed: int) -> Drawn:
    """So many trainings; the same seed draws the same."""
    random = np.random.default_rng(seed)
    if setting.hazard == 0.0:
        whole = np.full(trainings, setting.base)
        nothing = np.zeros(trainings)
        return Drawn(whole, whole + setting.wait, nothing, nothing)
    if math.isinf(setting.interval):
        return _draw_without_saves(setting, trainings, random)
    return _draw_with_saves(setting, trainings, random)


def _draw_with_saves(setting: Setting, trainings: int, random: np.random.Generator) -> Drawn:
    left = np.full(trainings, setting.work)
    paid, lost, count = np.zeros(trainings), np.zeros(trainings), np.zeros(trainings)
    period, alive = setting.interval + setting.stall, np.arange(trainings)
    for _ in range(_MOST_ATTEMPTS):
        life = random.exponential(1.0 / setting.hazard, len(alive))
        todo = left[alive]
        saves = np.maximum(np.ceil(todo / setting.interval - 1e-9) - 1.0, 0.0)
        need = setting.restart + todo + saves * setting.stall
        done = life >= need
        paid[alive] += np.minimum(life, need)
        lived, kept, trained = life[~done] - setting.restart, np.zeros(0), np.zeros(0)
        lived = np.maximum(lived, 0.0)
        whole = np.floor(lived / period)
        trained = np.minimum(
            whole * setting.interval + np.minimum(lived - whole * period, setting.interval), todo[~done]
        )
        durable = np.maximum(np.floor((lived - setting.upload) / period), 0.0) * setting.interval
        in_time = random.random(len(lived)) < setting.notice_success
        kept = np.where(in_time, np.maximum(trained - setting.farewell, 0.0), np.minimum(durable, trained))
        alive = alive[~done]
        left[alive] -= kept
        lost[alive] += trained - kept
        count[alive] += 1.0
        if len(alive) == 0:
            break
    paid[alive] = np.inf
    return Drawn(paid, paid + setting.wait * (1.0 + count), lost, count)


def _draw_without_saves(setting: Setting, trainings: int, random: np.random.Generator) -> Drawn:
    whole = setting.restart + setting.work
    chance = math.exp(-setting.hazard * whole)
    if chance < 1e-12:
        never = np.full(trainings, np.inf)
        return Drawn(never, never, never, never)
    count = random.geometric(chance, trainings).astype(np.float64) - 1.0
    spent = _lives(setting, count, whole, random)
    starts = np.minimum(spent, count * setting.restart)
    return Drawn(spent + whole, spent + whole + setting.wait * (1.0 + count), spent - starts, count)


def _lives(setting: Setting, count: Any, whole: float, random: np.random.Generator) -> Any:
    """Hours of ``count`` attempts, each of which was interrupted before it came through."""
    share = -math.expm1(-setting.hazard * whole)
    spent = np.zeros(len(count))
    for number in range(_SUMMED):
        more = count > number
        if not more.any():
            return spent
        spent[more] += -np.log1p(-share * random.random(int(more.sum()))) / setting.hazard
    rest = np.maximum(count - _SUMMED, 0.0)
    tail = whole * math.exp(-setting.hazard * whole) / share
    mean = 1.0 / setting.hazard - tail
    square = 2.0 / setting.hazard**2 - tail * (whole + 2.0 / setting.hazard)
    spread = np.sqrt(rest * max(0.0, square - mean**2))
    return spent + np.maximum(0.0, rest * mean + spread * random.standard_normal(len(count)))
