"""Offers in the order of what the run is expected to cost there, or of when it is expected to finish. Hours and 1/h."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unbroken.policy.pool_choice import PRIOR_HAZARD, PoolSeen, expected_hazard
from unbroken.pools.expectation import Expected, Terms, expect
from unbroken.pools.offers import Offer

By = Literal["cost", "finish"]

BANDS = (0.5, 0.75, 1.0, 1.5, 2.0)
"""What each of the advisor's bands makes of the hazard of a pool of which nothing is known. The bands only order
pools: their per cents are no rates, so the factors are an assumption, and are drawn towards the own journals."""
RETRY = 10.0 / 60.0
"""Until a start that was refused is tried again."""
UNKNOWN_SCORE = 5


@dataclass(frozen=True)
class Experience:
    """What own runs met in a pool."""

    hours: float = 0.0
    """That they were there."""
    interruptions: int = 0
    attempts: int = 0


@dataclass(frozen=True)
class Ranked:
    """An offer with what is expected of it."""

    offer: Offer
    price: float
    """Of a node for an hour, with which its cost was reckoned."""
    hazard: float
    expected: Expected
    on_demand: Expected | None
    """The same work on demand, in the same type and region."""
    experience: Experience

    @property
    def takes_part(self) -> bool:
        """Whether it may be chosen: it has a discount, can be had, and the run would come to its end there.

        A stay of an own run outweighs every sign that the offer is a phantom, except that it has no price.
        """
        if not math.isfinite(self.expected.cost) or "no-discount" in self.offer.flags:
            return False
        return not self.offer.phantom or self.experience.hours > 0.0


def rank(
    offers: Iterable[Offer],
    terms: Terms,
    *,
    by: By = "cost",
    experience: Mapping[str, Experience] | None = None,
    speeds: Mapping[str, float] | None = None,
) -> list[Ranked]:
    """The best first; those that should not be taken come after all others, and those without a price are last.

    Args:
        experience: of own runs, by :attr:`unbroken.pools.offers.Offer.name`.
        speeds: of types against the one for which the work was measured; 1 by default.
    """
    met, fast = experience or {}, speeds or {}
    ranked = [_ranked(offer, terms, met, fast.get(offer.instance_type, 1.0)) for offer in offers]

    def place(each: Ranked) -> tuple[bool, float, float, str]:
        first, second = (each.expected.cost, each.expected.finish)[:: 1 if by == "cost" else -1]
        return (not each.takes_part, first, second, each.offer.name)

    return sorted(ranked, key=place)


def _ranked(offer: Offer, terms: Terms, met: Mapping[str, Experience], speed: float) -> Ranked:
    experience = _experience_in(offer, met)
    hazard = hazard_of(offer, experience)
    price = offer.spot_mean if offer.spot_mean is not None else math.inf
    wait = RETRY * (10.0 / (offer.score or UNKNOWN_SCORE) - 1.0)
    on_demand = None
    if offer.on_demand is not None:
        on_demand = expect(terms, price=offer.on_demand, hazard=0.0, speed=speed)
    expected = expect(terms, price=price, hazard=hazard, wait=wait, speed=speed)
    return Ranked(offer, price, hazard, expected, on_demand, experience)


def hazard_of(offer: Offer, experience: Experience) -> float:
    """Interruptions of a machine per hour: the advisor's band, drawn towards what own runs met there."""
    band = 1.0 if offer.band is None else BANDS[min(max(offer.band, 0), len(BANDS) - 1)]
    prior = PRIOR_HAZARD * band
    seen = PoolSeen(0.0, experience.interruptions, experience.hours, hazard=prior)
    return float(expected_hazard(seen))


def _experience_in(offer: Offer, met: Mapping[str, Experience]) -> Experience:
    names: Sequence[str] = [offer.name]
    if offer.zone_id and offer.zone_id != offer.zone:
        names = [offer.name, f"{offer.instance_type}/{offer.zone_id}/spot"]
    found = [met[name] for name in names if name in met]
    return Experience(
        sum(each.hours for each in found),
        sum(each.interruptions for each in found),
        sum(each.attempts for each in found),
    )
