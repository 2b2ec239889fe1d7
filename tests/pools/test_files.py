"""Offers from files: what is read, what is refused, and that nothing else happens with any bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.pools.answers import facts_of
from unbroken.pools.facts import Advice, Offerings, OnDemandPrice, Score, SpotPrice, ZoneName
from unbroken.pools.files import parse_file, read_file
from unbroken.pools.offers import assemble

TABLE = b"""InstanceType,Price,SpotPrice,Region,AvailabilityZoneId
a1.large,10.0,4.0,us-east-1,use1-az1
a1.large,10.0,9.99,us-east-1,use1-az2
a1.large,10.0,,us-east-1,use1-az3
"""

HISTORY = {
    "SpotPriceHistory": [
        {"AvailabilityZone": "us-east-1a", "AvailabilityZoneId": "use1-az6", "InstanceType": "a1.large",
         "ProductDescription": "Linux/UNIX", "SpotPrice": "4.000000", "Timestamp": "2026-11-20T00:00:00+00:00"},
        {"AvailabilityZone": "us-east-1a", "AvailabilityZoneId": "use1-az6", "InstanceType": "a1.large",
         "ProductDescription": "Windows", "SpotPrice": "9.000000", "Timestamp": "2026-11-20T00:00:00Z"},
    ]
}  # fmt: skip
ADVISOR = {
    "instance_types": {},
    "ranges": [{"index": 0, "label": "<5%", "dots": 0, "max": 5}, {"index": 4, "label": ">20%", "dots": 4, "max": 100}],
    "spot_advisor": {
        "us-east-1": {"Linux": {"a1.large": {"s": 60, "r": 4}}, "Windows": {"a1.large": {"s": 1, "r": 0}}}
    },
}
PRICES = Path(os.environ.get("UNBROKEN_PRICES", "/nonexistent"))
"""A folder with a provider's own tables; they are no part of the project."""


def test_a_table_gives_prices_and_the_zones_without_one() -> None:
    facts = parse_file(TABLE)
    assert SpotPrice("a1.large", "us-east-1", "use1-az1", 4.0) in facts
    assert SpotPrice("a1.large", "us-east-1", "use1-az3", None) in facts
    assert OnDemandPrice("a1.large", "us-east-1", 10.0) in facts


def test_answers_of_the_command_line_are_read_by_their_keys() -> None:
    assert facts_of(HISTORY) == [
        ZoneName("us-east-1a", "use1-az6"),
        SpotPrice("a1.large", "us-east-1", "us-east-1a", 4.0, 1795132800.0),
    ]
    place = {"InstanceType": "a1.large", "LocationType": "availability-zone", "Location": "us-east-1b"}
    assert facts_of({"InstanceTypeOfferings": [place]}) == [Offerings("a1.large", "us-east-1", ("us-east-1b",))]
    score = {"Region": "us-east-1", "AvailabilityZoneId": "use1-az6", "Score": 7}
    assert facts_of({"SpotPlacementScores": [score]}) == [Score("us-east-1", 7, "use1-az6")]
    assert facts_of(ADVISOR) == [Advice("a1.large", "us-east-1", 4, ">20%", 60)]
    product = {
        "product": {"attributes": {"instanceType": "a1.large", "regionCode": "us-east-1"}},
        "terms": {"OnDemand": {"x": {"priceDimensions": {"y": {"unit": "Hrs", "pricePerUnit": {"USD": "10.5"}}}}}},
    }
    assert facts_of({"PriceList": [json.dumps(product)]}) == [OnDemandPrice("a1.large", "us-east-1", 10.5)]


def test_a_file_says_when_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_bytes(TABLE)
    os.utime(path, (1_000_000, 1_000_000))
    reading = read_file(path)
    assert (reading.source, reading.at) == ("prices.csv", 1_000_000)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "no JSON"),
        (b"{}", "no answer about pools"),
        (b'{"SpotPriceHistory": [{"SpotPrice": "1"}]}', "SpotPriceHistory cannot be read"),
        (b'{"SpotPlacementScores": [{"Region": "us-east-1", "Score": 11}]}', "not a score from 1 to 10"),
        (b"a,b\n1,2\n", "neither JSON nor a table"),
        (TABLE + b"a1.large,1,-2,us-east-1,use1-az4\n", "line 5: '-2' is not a price"),
        (TABLE + b"a1.large,1\n", "line 5 lacks"),
        (b"\xff\xfe", "neither JSON nor CSV"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        read_file(path)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
_JSON = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))
_FIELDS = st.dictionaries(
    st.sampled_from(["InstanceType", "SpotPrice", "Timestamp", "AvailabilityZone", "AvailabilityZoneId", "Region",
                     "Score", "Location", "LocationType", "ZoneName", "ZoneId", "product", "terms"]),
    _JSON | st.sampled_from(["a1.large", "us-east-1a", "1.5", "2026-11-20T00:00:00Z", "9" * 400, "availability-zone"]),
)  # fmt: skip
_KEYS = st.sampled_from(
    ["SpotPriceHistory", "InstanceTypeOfferings", "SpotPlacementScores", "AvailabilityZones", "PriceList"]
)


@given(st.dictionaries(_KEYS, st.lists(_FIELDS, max_size=3) | _JSON, min_size=1))
def test_any_answer_gives_offers_or_is_refused(answer: dict[str, object]) -> None:
    _offers_or_refusal(lambda: facts_of(answer))


@given(st.fixed_dictionaries({"ranges": _JSON, "spot_advisor": st.dictionaries(st.text(), _JSON) | _JSON}))
def test_any_advisor_feed_gives_facts_or_is_refused(feed: dict[str, object]) -> None:
    _offers_or_refusal(lambda: facts_of(feed))


@given(st.binary() | st.binary().map(lambda data: TABLE + data))
def test_any_bytes_give_offers_or_are_refused(data: bytes) -> None:
    _offers_or_refusal(lambda: parse_file(data))


def _offers_or_refusal(read) -> None:  # type: ignore[no-untyped-def]
    from unbroken.pools.facts import Reading

    try:
        facts = read()
    except ConfigError:
        return
    assemble([Reading("any", 0.0, tuple(facts))])


@pytest.mark.skipif(not PRICES.exists(), reason="UNBROKEN_PRICES does not name a folder with a provider's prices")
def test_real_prices_and_the_real_feed_are_read_whole() -> None:
    readings = [read_file(PRICES / "aws_p_family_excerpt.csv")]
    readings.append(read_file(PRICES / "spot-advisor-data.2025-06-28.json"))
    offers = assemble(readings, types=["p4d.24xlarge"])
    assert len(offers) == 29
    assert sum("no-discount" in offer.flags for offer in offers) == 9
    assert sum(offer.band is not None for offer in offers) > 20
    missing = [offer for offer in assemble(readings, types=["p5.48xlarge"]) if "no-price" in offer.flags]
    assert len(missing) == 4
