"""How facts of several sources become offers, and which of them are flagged."""

from __future__ import annotations

import pytest

from unbroken.pools.facts import Advice, Fact, Offerings, OnDemandPrice, Reading, Score, SpotPrice, ZoneName
from unbroken.pools.offers import Offer, assemble

REGION = "us-east-1"


def offers_of(*facts: Fact) -> dict[str, Offer]:
    return {offer.zone: offer for offer in assemble([Reading("test", 0.0, facts)])}


def price(zone: str, amount: float | None, at: float | None = None) -> SpotPrice:
    return SpotPrice("a1.large", REGION, zone, amount, at)


def test_a_zone_is_one_offer_whether_a_source_says_its_name_or_its_id() -> None:
    offers = offers_of(
        price("us-east-1a", 4.0, 10.0), price("use1-az6", 5.0, 20.0), ZoneName("us-east-1a", "use1-az6"),
        Score(REGION, 3), Score(REGION, 8, "use1-az6"),
    )  # fmt: skip
    assert list(offers) == ["us-east-1a"]
    assert (offers["us-east-1a"].zone_id, offers["us-east-1a"].spot, offers["us-east-1a"].score) == ("use1-az6", 5.0, 8)


def test_the_mean_price_is_weighted_by_how_long_each_held() -> None:
    offer = offers_of(price("us-east-1a", 2.0, 0.0), price("us-east-1a", 8.0, 30.0), price("us-east-1a", 5.0, 40.0))
    # 30 s of 2, 10 s of 8, and the newest as long as the longest before it
    assert offer["us-east-1a"].spot_mean == pytest.approx((30 * 2 + 10 * 8 + 30 * 5) / 70)
    assert (offer["us-east-1a"].spot, offer["us-east-1a"].spot_high) == (5.0, 8.0)


def test_an_offer_that_cannot_be_had_is_a_phantom() -> None:
    offers = offers_of(
        price("us-east-1a", None), price("us-east-1b", 8.0), price("us-east-1c", 8.1), price("us-east-1d", 2.4),
        price("us-east-1e", 8.2), price("us-east-1f", 25.0), OnDemandPrice("a1.large", REGION, 25.1),
        Offerings("a1.large", REGION, tuple(f"us-east-1{letter}" for letter in "abdef")),
        Score(REGION, 1, "us-east-1e"), Advice("a1.large", REGION, 2, "10-15%", 50),
    )  # fmt: skip
    flags = {zone[-1]: offer.flags for zone, offer in offers.items()}
    assert flags == {
        "a": ("no-price",), "b": (), "c": ("not-sold",), "d": ("lone-price",), "e": ("no-capacity",),
        "f": ("no-discount",),
    }  # fmt: skip
    assert [zone[-1] for zone, offer in offers.items() if offer.phantom] == ["a", "c", "d", "e"]
    assert offers["us-east-1b"].band == 2


def test_only_the_types_and_regions_that_were_asked_for_are_offered() -> None:
    facts = (price("us-east-1a", 1.0), SpotPrice("b1.large", REGION, "us-east-1a", 1.0),
             SpotPrice("a1.large", "eu-west-1", "eu-west-1a", 1.0))  # fmt: skip
    found = assemble([Reading("test", 0.0, facts)], ["a1.large"], [REGION])
    assert [offer.name for offer in found] == ["a1.large/us-east-1a/spot"]
