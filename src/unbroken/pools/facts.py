"""What a source can say about pools, one small fact at a time; facts of several sources become offers.

Prices are of one machine for an hour, times seconds since the epoch. They are structs so that a cache can hold them.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import msgspec

_ZONE_ID = re.compile(r"[a-z]+\d+(-[a-z0-9]+)*-az\d+")
_REGION = re.compile(r"[a-z]{2,}(?:-[a-z]+)+-\d+")


class SpotPrice(msgspec.Struct, frozen=True, tag="spot"):
    """A price of spot from a moment on; None where the zone is listed and has none."""

    instance_type: str
    region: str
    zone: str
    """Name (``us-east-1a``) or id (``use1-az1``)."""
    price: float | None
    at: float | None = None
    """When it began to hold; None where that is not known."""


class OnDemandPrice(msgspec.Struct, frozen=True, tag="on-demand"):
    """The price on demand, the same in the whole region."""

    instance_type: str
    region: str
    price: float


class Offerings(msgspec.Struct, frozen=True, tag="offerings"):
    """All zones of a region in which the type is sold; in the others it is not."""

    instance_type: str
    region: str
    zones: tuple[str, ...]


class Score(msgspec.Struct, frozen=True, tag="score"):
    """How likely a request for spot would be filled now, 1 to 10; it says nothing about interruptions."""

    region: str
    score: int
    zone: str = ""
    """An id, or "" for the whole region."""
    instance_type: str = ""
    """"" where the question was about several types together."""


class Advice(msgspec.Struct, frozen=True, tag="advice"):
    """The provider's own view of a type in a region over the last month."""

    instance_type: str
    region: str
    band: int
    """0 for the fewest interruptions."""
    label: str
    """Of the band, such as ``<5%``."""
    savings: int
    """Per cent of the price on demand."""


class ZoneName(msgspec.Struct, frozen=True, tag="zone"):
    """What this account calls a zone; the same id may have another name in another account."""

    name: str
    id: str


Fact: TypeAlias = SpotPrice | OnDemandPrice | Offerings | Score | Advice | ZoneName


class Reading(msgspec.Struct, frozen=True):
    """What one source said."""

    source: str
    at: float
    """When it said so."""
    facts: tuple[Fact, ...]
    problems: tuple[str, ...] = ()
    """What it could not say, and why."""


def is_zone_id(zone: str) -> bool:
    """Whether it is an id as ``use1-az1``, which means the same in every account."""
    return _ZONE_ID.fullmatch(zone) is not None


def region_of(zone: str) -> str:
    """The region of a zone's name, ``us-east-1`` of ``us-east-1a``; "" where the name does not tell."""
    found = _REGION.match(zone)
    return found[0] if found and not is_zone_id(zone) else ""
