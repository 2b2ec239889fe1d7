"""A question to recorded worlds: which policy and which cadence, from many starts, in parallel processes. Hours."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from unbroken.policy.choice import POLICIES, check_policy, make_policy
from unbroken.policy.decision import Terms
from unbroken.policy.stays import Seen, StayRates, stays_of
from unbroken.simulate.omniscient import omniscient_costs
from unbroken.simulate.replay import Chances, Outcomes, World, replay
from unbroken.simulate.saving import NO_SAVES, Saving
from unbroken.simulate.trace import trace_error

BOUND = "omniscient"


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked. Every (world, policy, cadence) is replayed from the same starts.

    The programme is trained on the half of a trace in which a start does not lie, if each half holds a whole run.
    """

    worlds: Sequence[tuple[str, World]]
    terms: Terms
    policies: Sequence[str] = POLICIES
    cadences: dict[str, Saving] = field(default_factory=lambda: {"no saves": NO_SAVES})
    starts: int = 200
    """In all worlds together."""
    bound_starts: int = 40
    """Of them, those for which the omniscient bound is computed as well: it takes longer than all policies."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.policies:
            check_policy(name)
        for name, world in self.worlds:
            if world.ticks < self.window(world):
                found = f"it covers {world.ticks * world.gap:.1f} h, and a run may take {self.terms.allowed:.1f} h"
                raise trace_error(name, found, "Use a longer trace, or a shorter deadline")

    def window(self, world: World) -> int:
        """Ticks to the deadline."""
        return math.ceil(self.terms.allowed / world.gap - 1e-9)

    def folds(self, world: World) -> list[tuple[int, int, int, int]]:
        """Parts of a trace: first and last tick of starts, and the ticks to learn from."""
        window, half = self.window(world), world.ticks // 2
        if half > window:
            return [(0, half - window, half, world.ticks), (half, world.ticks - window, 0, half)]
        return [(0, world.ticks - window, 0, world.ticks)]

    def starts_in(self, world: World, fold: int) -> Any:
        """The ticks at which runs begin, evenly over the part."""
        folds = self.folds(world)
        count = max(1, self.starts // (len(self.worlds) * len(folds)))
        return np.linspace(folds[fold][0], folds[fold][1], count).astype(np.int64)

    def bound_every(self) -> int:
        """One start in so many is compared with the bound."""
        return max(1, math.ceil(self.starts / max(1, self.bound_starts)))


@dataclass(frozen=True)
class Unit:
    """One piece of the work."""

    world: int
    fold: int
    policy: str
    cadence: str


@dataclass(frozen=True, eq=False)
class Piece:
    """What became of it."""

    unit: Unit
    starts: Any
    outcomes: Outcomes
    """Of the bound only the cost is known; the rest is NaN."""


def ask(question: Question, processes: int = 1, tell: Callable[[int, int], None] | None = None) -> list[Piece]:
    """Replay everything; ``tell(done, all)`` hears of progress. The order of the pieces is always the same."""
    units = list(_units(question))
    pieces: dict[Unit, Piece] = {}
    for piece in _run_all(question, units, processes):
        pieces[piece.unit] = piece
        if tell is not None:
            tell(len(pieces), len(units))
    return [pieces[unit] for unit in units]


def _units(question: Question) -> Iterator[Unit]:
    for index, (_, world) in enumerate(question.worlds):
        for fold in range(len(question.folds(world))):
            if question.bound_starts:
                yield Unit(index, fold, BOUND, "")
            for policy in question.policies:
                for cadence in question.cadences:
                    yield Unit(index, fold, policy, cadence)


def _run_all(question: Question, units: Sequence[Unit], processes: int) -> Iterator[Piece]:
    if processes <= 1 or len(units) == 1:
        yield from (run_unit(question, unit) for unit in units)
        return
    # Spawned, not forked: whoever calls may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _remember, (question,)) as pool:
        for future in as_completed([pool.submit(_run_remembered, unit) for unit in units]):
            yield future.result()


_remembered: list[Question] = []


def _remember(question: Question) -> None:
    _remembered[:] = [question]


def _run_remembered(unit: Unit) -> Piece:
    return run_unit(_remembered[0], unit)


def run_unit(question: Question, unit: Unit) -> Piece:
    """One world's part, one policy, one cadence."""
    world = question.worlds[unit.world][1]
    starts = question.starts_in(world, unit.fold)
    if unit.policy == BOUND:
        outcomes = Outcomes(*(np.full(len(starts), np.nan) for _ in fields(Outcomes)))
        every = question.bound_every()
        outcomes.cost[::every] = omniscient_costs(world, starts[::every], question.terms)
        return Piece(unit, starts, outcomes)
    saving, terms = question.cadences[unit.cadence], question.terms
    policy = make_policy(unit.policy, saving.terms(terms), lambda: learnt(question, unit))
    longest = 2.0 * terms.changeover - terms.longest_changeover
    chances = Chances((max(0.0, longest), terms.longest_changeover), question.seed + unit.world)
    if terms.longest_changeover == terms.changeover:
        chances = Chances((terms.changeover, terms.changeover), question.seed + unit.world)
    return Piece(unit, starts, replay(world, starts, terms, policy, saving, chances))


def learnt(question: Question, unit: Unit) -> StayRates:
    """Rates of the other part of the trace, drawn a little towards those of all traces' other parts."""
    everywhere, here = Seen(), Seen()
    for index, (_, world) in enumerate(question.worlds):
        folds = question.folds(world)
        _, _, begin, end = folds[min(unit.fold, len(folds) - 1)]
        stays = stays_of(world.up[:, begin:end].any(axis=0).tolist(), world.gap)
        everywhere.add(stays)
        if index == unit.world:
            here.add(stays)
    return here.rates(everywhere.rates())
