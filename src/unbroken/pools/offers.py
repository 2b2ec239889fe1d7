"""An offer: one instance type in one zone on the spot market, with all that is known of it.

Prices are of one machine for an hour.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from unbroken.pools.facts import (
    Advice,
    Fact,
    Offerings,
    OnDemandPrice,
    Reading,
    Score,
    SpotPrice,
    ZoneName,
    is_zone_id,
)

NO_DISCOUNT = 0.95
"""Share of the price on demand from which spot is no bargain."""
LONE_PRICE = 0.5
"""Share of its neighbours' median below which a price is one at which nobody can buy."""
LOW_SCORE = 1
"""Placement score at which a request is as good as refused."""

_F = TypeVar("_F", SpotPrice, OnDemandPrice, Offerings, Score, Advice, ZoneName)


@dataclass(frozen=True)
class Offer:
    """One pool of spot. None stands for what no source said."""

    instance_type: str
    region: str
    zone: str
    """Its name in this account where that is known, else its id."""
    zone_id: str = ""
    spot: float | None = None
    """The newest price."""
    spot_mean: float | None = None
    """Over the history, weighted by how long each price held."""
    spot_high: float | None = None
    on_demand: float | None = None
    score: int | None = None
    """Of placement, 1 to 10."""
    band: int | None = None
    """The advisor's, 0 for the fewest interruptions."""
    label: str = ""
    sold: bool | None = None
    """Whether the region's list of offerings has it."""
    flags: tuple[str, ...] = field(default=())
    """Why it should not be taken: ``no-discount``, or one of :data:`PHANTOM`."""

    @property
    def name(self) -> str:
        """As a pool of the job file is written."""
        return f"{self.instance_type}/{self.zone}/spot"

    @property
    def phantom(self) -> bool:
        """Whether it is listed and cannot be had."""
        return any(flag in PHANTOM for flag in self.flags)


PHANTOM = ("no-price", "not-sold", "no-capacity", "lone-price")
"""Listed without a price; priced where it is not sold; a placement score of 1; a price far below its neighbours',
which nobody bids up because nobody gets a machine."""


def assemble(readings: Iterable[Reading], types: Sequence[str] = (), regions: Sequence[str] = ()) -> list[Offer]:
    """The offers that the facts of all sources together make, in the order of their names.

    Args:
        types: only these; all by default.
        regions: only these; all by default.
    """
    facts = [fact for reading in readings for fact in reading.facts]
    names = {fact.id: fact.name for fact in _of(facts, ZoneName)}
    ids = {name: id_ for id_, name in names.items()}
    prices = defaultdict[tuple[str, str, str], list[SpotPrice]](list)
    for fact in _of(facts, SpotPrice):
        if (not types or fact.instance_type in types) and (not regions or fact.region in regions):
            prices[fact.instance_type, fact.region, names.get(fact.zone, fact.zone)].append(fact)
    found = []
    for (type_, region, zone), points in sorted(prices.items()):
        zone_id = zone if is_zone_id(zone) else ids.get(zone, "")
        found.append(_priced(Offer(type_, region, zone, zone_id), points))
    for known in (_with_on_demand, _with_sold, _with_scores, _with_advice):
        found = [known(offer, facts) for offer in found]
    return [replace(offer, flags=_flags(offer, found)) for offer in found]


def _of(facts: Sequence[Fact], kind: type[_F]) -> list[_F]:
    return [fact for fact in facts if isinstance(fact, kind)]


def _priced(offer: Offer, points: list[SpotPrice]) -> Offer:
    known = sorted((point.at or 0.0, point.price) for point in points if point.price is not None)
    if not known:
        return offer
    held = [max(0.0, after[0] - before[0]) for before, after in itertools.pairwise(known)]
    # The newest price has held until now, which a file does not say: it counts as long as the longest before it.
    weights = [*held, max(held, default=1.0) or 1.0]
    mean = sum(weight * price for weight, (_, price) in zip(weights, known, strict=True)) / sum(weights)
    return replace(offer, spot=known[-1][1], spot_mean=mean, spot_high=max(price for _, price in known))


def _with_on_demand(offer: Offer, facts: Sequence[Fact]) -> Offer:
    here = [fact.price for fact in _of(facts, OnDemandPrice) if _same(fact, offer)]
    return replace(offer, on_demand=here[-1]) if here else offer


def _with_sold(offer: Offer, facts: Sequence[Fact]) -> Offer:
    lists = [fact.zones for fact in _of(facts, Offerings) if _same(fact, offer)]
    return replace(offer, sold=any({offer.zone, offer.zone_id} & set(zones) for zones in lists)) if lists else offer


def _with_scores(offer: Offer, facts: Sequence[Fact]) -> Offer:
    """The score that is closest to it: of its type before that of several, of its zone before that of the region."""
    fitting = [
        fact for fact in _of(facts, Score)
        if fact.region == offer.region and fact.zone in ("", offer.zone, offer.zone_id)
        and fact.instance_type in ("", offer.instance_type)
    ]  # fmt: skip
    if not fitting:
        return offer
    return replace(offer, score=max(fitting, key=lambda fact: (bool(fact.instance_type), bool(fact.zone))).score)


def _with_advice(offer: Offer, facts: Sequence[Fact]) -> Offer:
    here = [fact for fact in _of(facts, Advice) if _same(fact, offer)]
    return replace(offer, band=here[-1].band, label=here[-1].label) if here else offer


def _same(fact: OnDemandPrice | Offerings | Advice, offer: Offer) -> bool:
    return (fact.instance_type, fact.region) == (offer.instance_type, offer.region)


def _flags(offer: Offer, offers: Sequence[Offer]) -> tuple[str, ...]:
    flags = []
    if offer.spot is None:
        return ("no-price",)
    if offer.sold is False:
        flags.append("not-sold")
    if offer.score is not None and offer.score <= LOW_SCORE:
        flags.append("no-capacity")
    beside = [
        other.spot for other in offers
        if other.spot is not None and other is not offer
        and (other.instance_type, other.region) == (offer.instance_type, offer.region)
    ]  # fmt: skip
    if len(beside) >= 2 and offer.spot < LONE_PRICE * statistics.median(beside):
        flags.append("lone-price")
    if offer.on_demand is not None and offer.spot >= NO_DISCOUNT * offer.on_demand:
        flags.append("no-discount")
    return tuple(flags)
