"""How long spot stays, and how long it stays away, by the age of the stay: young instances are taken most.

Hours and 1/h. The rates are constant within buckets of age, so that a few dozen observed stays are enough.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

EDGES = (0.25, 1.0, 3.0, 8.0)
"""Ages at which one bucket ends and the next begins: docs/design/012-policies.md says why these."""


@dataclass(frozen=True)
class Stay:
    """A time in which spot was up, or down, without a break."""

    up: bool
    hours: float
    """Of it, as seen."""
    ended: bool
    """Whether its end was seen."""
    began: float = 0.0
    """Age at which it was first seen; infinite where its beginning was not."""


@dataclass(frozen=True)
class StayRates:
    """Ends per hour of the stays, for each bucket of age."""

    up: tuple[float, ...]
    """Interruptions."""
    down: tuple[float, ...]
    """Returns."""
    edges: tuple[float, ...] = EDGES

    def rate(self, *, up: bool, age: float) -> float:
        """Ends per hour at that age."""
        return (self.up if up else self.down)[bisect.bisect_right(self.edges, age)]

    def end_chance(self, *, up: bool, age: float, hours: float) -> float:
        """Chance that a stay of that age ends within so many hours."""
        rates = self.up if up else self.down
        exposure = _exposure(self.edges, age, hours)
        return -math.expm1(-sum(rate * each for rate, each in zip(rates, exposure, strict=True)))


@dataclass
class Seen:
    """Hours and ends in each bucket, counted from stays; the memory of a pool."""

    edges: tuple[float, ...] = EDGES
    hours: dict[bool, list[float]] = field(default_factory=dict)
    ends: dict[bool, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for up in (True, False):
            self.hours.setdefault(up, [0.0] * (len(self.edges) + 1))
            self.ends.setdefault(up, [0.0] * (len(self.edges) + 1))

    def add(self, stays: Iterable[Stay]) -> Seen:
        """Count these as well; returns itself."""
        for stay in stays:
            for bucket, hours in enumerate(_exposure(self.edges, stay.began, stay.hours)):
                self.hours[stay.up][bucket] += hours
            if stay.ended:
                self.ends[stay.up][bisect.bisect_right(self.edges, stay.began + stay.hours * (1.0 - 1e-9))] += 1.0
        return self

    def rates(self, prior: StayRates | None = None, prior_hours: float = 2.0) -> StayRates:
        """The rates, drawn towards ``prior`` with the weight of so many hours in each bucket.

        Without a prior towards the pool's own mean rate, and where nothing was seen, towards one end in 10 h.
        """
        return StayRates(
            up=self._rates(True, prior.up if prior else None, prior_hours),
            down=self._rates(False, prior.down if prior else None, prior_hours),
            edges=self.edges,
        )

    def _rates(self, up: bool, prior: Sequence[float] | None, weight: float) -> tuple[float, ...]:
        hours, ends = self.hours[up], self.ends[up]
        mean = (sum(ends) + 0.1) / (sum(hours) + 1.0)
        towards = prior or [mean] * len(hours)
        return tuple((n + weight * p) / (h + weight) for n, h, p in zip(ends, hours, towards, strict=True))


def stays_of(ups: Sequence[bool], hours: float) -> list[Stay]:
    """The stays in a record of ticks of so many hours. The first one's beginning was not seen, nor the last's end."""
    stays: list[Stay] = []
    begin = 0
    for index in range(1, len(ups) + 1):
        if index == len(ups) or ups[index] != ups[begin]:
            began = 0.0 if begin else math.inf
            stays.append(Stay(bool(ups[begin]), (index - begin) * hours, index < len(ups), began))
            begin = index
    return stays


def _exposure(edges: Sequence[float], age: float, hours: float) -> list[float]:
    """Hours of a stay in each bucket, between ``age`` and ``age + hours``."""
    bounds = (0.0, *edges, math.inf)
    if math.isinf(age):
        return [*([0.0] * len(edges)), hours]
    return [max(0.0, min(age + hours, high) - max(age, low)) for low, high in itertools.pairwise(bounds)]
