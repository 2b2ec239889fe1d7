"""Answers of EC2 and of the advisor's feed as facts: the same from boto3, from a file, or from the network.

What cannot be read as expected raises ConfigError; a record that lacks what is needed is one such.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from unbroken.errors import ConfigError
from unbroken.pools.facts import Advice, Fact, Offerings, OnDemandPrice, Score, SpotPrice, ZoneName, region_of

_LINUX = ("Linux/UNIX", "Linux/UNIX (Amazon VPC)")


def facts_of(answer: object) -> list[Fact]:
    """The facts in one answer; which call it answers is told by its keys.

    Raises:
        ConfigError: it is no such answer, or it is damaged.
    """
    if isinstance(answer, Mapping):
        for key, read in _READERS.items():
            if key in answer:
                try:
                    return list(read(answer))
                except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                    found = f"{key} cannot be read: {type(error).__name__} {error}"
                    raise ConfigError(found, kind="pools", hint="Fetch it again") from error
    hint = f"Known are JSON answers with one of {', '.join(_READERS)}"
    raise ConfigError("this is no answer about pools", kind="pools", hint=hint)


def price_of(value: object) -> float:
    """A price, from the text or the number that a source gives.

    Raises:
        ValueError: it is none, or not positive.
    """
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a price")
    price = float(value)
    if not (math.isfinite(price) and price > 0):
        raise ValueError(f"{value!r} is not a price")
    return price


def _history(answer: Mapping[str, Any]) -> Iterator[Fact]:
    named = set()
    for each in answer["SpotPriceHistory"]:
        if each.get("ProductDescription", _LINUX[0]) not in _LINUX:
            continue
        zone, id_ = _text(each.get("AvailabilityZone") or ""), _text(each.get("AvailabilityZoneId") or "")
        if zone and id_ and zone not in named:
            named.add(zone)
            yield ZoneName(zone, id_)
        region = region_of(zone) or _text(each.get("Region") or "")
        if not (region and (zone or id_)):
            raise ValueError("a price of no zone")
        yield SpotPrice(_text(each["InstanceType"]), region, zone or id_, price_of(each["SpotPrice"]), _moment(each))


def _moment(each: Mapping[str, Any]) -> float:
    at = each["Timestamp"]
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    if not isinstance(at, datetime):
        raise TypeError(f"{at!r} is not a moment")
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _offerings(answer: Mapping[str, Any]) -> Iterator[Fact]:
    zones = defaultdict[tuple[str, str], list[str]](list)
    for each in answer["InstanceTypeOfferings"]:
        place, kind = _text(each["Location"]), each.get("LocationType")
        if kind == "availability-zone":
            zones[_text(each["InstanceType"]), region_of(place)].append(place)
    yield from (Offerings(type_, region, tuple(sorted(each))) for (type_, region), each in zones.items())


def _scores(answer: Mapping[str, Any]) -> Iterator[Fact]:
    for each in answer["SpotPlacementScores"]:
        score = each["Score"]
        if not isinstance(score, int) or not 1 <= score <= 10:
            raise ValueError(f"{score!r} is not a score from 1 to 10")
        zone = _text(each.get("AvailabilityZoneId") or "")
        yield Score(_text(each["Region"]), score, zone, _text(each.get("InstanceType") or ""))


def _zones(answer: Mapping[str, Any]) -> Iterator[Fact]:
    for each in answer["AvailabilityZones"]:
        yield ZoneName(_text(each["ZoneName"]), _text(each["ZoneId"]))


def _advice(answer: Mapping[str, Any]) -> Iterator[Fact]:
    labels = {each["index"]: _text(each["label"]) for each in answer["ranges"]}
    for region, systems in answer["spot_advisor"].items():
        for type_, each in systems.get("Linux", {}).items():
            band, savings = each["r"], each["s"]
            if not (isinstance(band, int) and isinstance(savings, int)):
                raise TypeError(f"{each!r} is no advice")
            yield Advice(_text(type_), _text(region), band, labels[band], savings)


def _products(answer: Mapping[str, Any]) -> Iterator[Fact]:
    """Answers of the price list: each product is a document in a string."""
    import msgspec

    for text in answer["PriceList"]:
        product = msgspec.json.decode(text) if isinstance(text, str | bytes) else text
        said = product["product"]["attributes"]
        for term in product["terms"].get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                amount = dimension["pricePerUnit"].get("USD")
                if amount is not None and dimension.get("unit") == "Hrs" and float(amount) > 0:
                    yield OnDemandPrice(_text(said["instanceType"]), _text(said["regionCode"]), price_of(amount))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


_READERS: dict[str, Callable[[Mapping[str, Any]], Iterator[Fact]]] = {
    "SpotPriceHistory": _history,
    "InstanceTypeOfferings": _offerings,
    "SpotPlacementScores": _scores,
    "AvailabilityZones": _zones,
    "PriceList": _products,
    "spot_advisor": _advice,
}
