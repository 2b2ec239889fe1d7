"""Whole questions: policies, cadences, starts, processes, and the choice."""

from __future__ import annotations

import numpy as np
import pytest

from unbroken.errors import ConfigError
from unbroken.policy.choice import POLICIES
from unbroken.policy.decision import Terms
from unbroken.simulate.ranking import bound_of, choose, rows_of
from unbroken.simulate.replay import World
from unbroken.simulate.saving import NO_SAVES, Saving
from unbroken.simulate.study import Question, ask
from unbroken.simulate.trace import Trace


def walk(seed: int, ticks: int = 1200, gap: float = 0.25) -> Trace:
    """Up and down by turns, 4 h and 2 h on average; young stays end more often."""
    random = np.random.default_rng(seed)
    up: list[int] = []
    while len(up) < ticks:
        hours = random.weibull(0.7) * (4.0 if len(up) % 2 == 0 else 2.0)
        up += [1 - (up[-1] if up else 0)] * max(1, round(hours / gap))
    return Trace(f"walk{seed}", gap, np.array(up[:ticks]))


TERMS = Terms(24.0, 32.0, 0.2, 3.0, 1.0, period=0.25)
WORLDS = [(f"walk{seed}", World.of([walk(seed)], 3.0, 1.0)) for seed in (1, 2)]


def test_two_processes_answer_as_one_does_and_tell_of_each_piece() -> None:
    question = Question(WORLDS, TERMS, ("greedy", "programme"), starts=20, bound_starts=4)
    told: list[tuple[int, int]] = []
    alone = ask(question, 1)
    together = ask(question, 2, lambda done, all_: told.append((done, all_)))
    assert told == [(number, 12) for number in range(1, 13)]
    for one, two in zip(alone, together, strict=True):
        assert one.unit == two.unit
        assert np.array_equal(one.outcomes.cost, two.outcomes.cost, equal_nan=True)


def test_every_policy_has_a_row_and_the_best_keeps_the_deadline() -> None:
    question = Question(WORLDS, TERMS, starts=120, bound_starts=24)
    pieces = ask(question)
    rows = rows_of(question, pieces)
    assert [row.policy for row in rows] == list(POLICIES)
    by_name = {row.policy: row for row in rows}
    assert by_name["on-demand"].cost == pytest.approx(3.0 * 24.2)
    assert all(row.misses == 0 for row in rows if row.policy != "spot-only")
    assert all(row.regret >= 0.0 for row in rows if row.policy != "spot-only")
    assert by_name["programme"].cost < by_name["uniform"].cost < by_name["greedy"].cost
    choice = choose(question, pieces, rows)
    assert choice.row.policy == "programme"
    assert choice.sure > 0.5
    assert choice.blocks > 8
    assert bound_of(pieces) < choice.row.cost


def test_a_cadence_that_never_saves_costs_more_than_one_that_does() -> None:
    cadences = {"30min": Saving(0.5, 0.001, 0.02, 0.5), "20h": Saving(20.0, 0.001, 0.02, 0.5), "none": NO_SAVES}
    terms = Terms(24.0, 80.0, 0.2, 3.0, 1.0)
    question = Question(WORLDS, terms, ("greedy",), cadences, starts=40, bound_starts=0)
    rows = {row.cadence: row for row in rows_of(question, ask(question))}
    assert rows["none"].cost < rows["30min"].cost < rows["20h"].cost
    assert rows["30min"].lost < rows["20h"].lost
    assert np.isnan(rows["30min"].regret)


def test_the_programme_learns_from_the_half_that_it_is_not_judged_on() -> None:
    world = WORLDS[0][1]
    question = Question(WORLDS, TERMS)
    for fold, (first, last, begin, end) in enumerate(question.folds(world)):
        starts = question.starts_in(world, fold)
        assert first <= starts.min() <= starts.max() <= last
        assert last + question.window(world) <= begin or first >= end


def test_a_lone_policy_is_best_without_a_runner_up() -> None:
    question = Question(WORLDS, TERMS, ("uniform",), starts=8, bound_starts=0)
    pieces = ask(question)
    assert choose(question, pieces, rows_of(question, pieces)).runner_up is None
    assert np.isnan(bound_of(pieces))


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ConfigError, match="no policy 'gready'"):
        Question(WORLDS, TERMS, ("gready",))
    with pytest.raises(ConfigError, match=r"covers 1\.0 h"):
        Question([("short", World.of([Trace("short", 0.5, np.array([1, 1]))], 3.0, 1.0))], TERMS)
