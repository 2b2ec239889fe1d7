"""A chosen set is cheap and spread, and never holds what should not be taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.pools.diversify import DOWN, Chosen, choose, effective_pools
from unbroken.pools.expectation import Terms
from unbroken.pools.offers import Offer
from unbroken.pools.output import group_overrides, job_pools, node_pool_requirements
from unbroken.pools.ranking import Ranked, rank

TERMS = Terms(work=48.0)


def offer(type_: str, zone: str, price: float, *flags: str) -> Offer:
    return Offer(type_, zone[:-1], zone, spot=price, spot_mean=price, on_demand=30.0, flags=flags)


def ranked(*offers: Offer) -> list[Ranked]:
    return rank(offers, TERMS)


def names(chosen: Chosen | None) -> list[str]:
    return [] if chosen is None else [each.offer.name for each in chosen.pools]


def test_one_pool_is_worth_one_and_others_less_than_one_each() -> None:
    one = offer("p4d", "us-east-1a", 10.0)
    assert effective_pools(ranked(one)) == pytest.approx(1.0)
    zones = effective_pools(ranked(one, offer("p4d", "us-east-1b", 10.0)))
    types = effective_pools(ranked(one, offer("p5", "us-east-1b", 10.0)))
    regions = effective_pools(ranked(one, offer("p4d", "us-west-2a", 10.0)))
    assert 1.0 < zones < types < regions < 2.0


def test_of_pools_at_one_price_those_that_fail_apart_are_taken() -> None:
    """Two of three: the pair in two regions is down less often than that in one."""
    chosen = choose(ranked(*(offer("p4d", zone, 10.0) for zone in ("us-east-1a", "us-east-1b", "us-west-2a"))), 2)
    assert names(chosen) == ["p4d/us-east-1a/spot", "p4d/us-west-2a/spot"]
    assert chosen is not None
    assert chosen.all_down == pytest.approx(DOWN**chosen.effective)


def test_a_pool_that_costs_more_than_it_saves_is_left_out() -> None:
    chosen = choose(ranked(offer("p4d", "us-east-1a", 10.0), offer("p4d", "us-east-1b", 28.0)), 4)
    assert names(chosen) == ["p4d/us-east-1a/spot"]


def test_what_should_not_be_taken_is_not_chosen() -> None:
    flagged = [
        offer("p4d", "us-east-1a", 10.0, "no-discount"),
        offer("p4d", "us-east-1b", 2.0, "lone-price"),
        replace(offer("p4d", "us-east-1c", 2.0), spot=None, spot_mean=None, flags=("no-price",)),
    ]
    assert choose(ranked(*flagged), 4) is None
    assert names(choose(ranked(*flagged, offer("p4d", "us-east-1d", 20.0)), 4)) == ["p4d/us-east-1d/spot"]


_offers = st.lists(
    st.builds(
        offer, st.sampled_from(["p4d", "p5"]), st.sampled_from(["us-east-1a", "us-east-1b", "us-west-2a"]),
        st.floats(1.0, 29.0),
    ),
    min_size=1, max_size=6, unique_by=lambda each: each.name,
)  # fmt: skip


@given(_offers, st.integers(1, 5))
def test_a_wider_choice_never_costs_more(offers: list[Offer], most: int) -> None:
    narrow, wide = choose(ranked(*offers), most), choose(ranked(*offers), most + 1)
    assert narrow is not None
    assert wide is not None
    assert wide.cost <= narrow.cost * (1 + 1e-9)
    assert len(narrow.pools) <= most
    assert 0.0 < wide.all_down <= DOWN + 1e-9


def test_a_choice_is_written_for_each_platform() -> None:
    chosen = choose(ranked(offer("p4d", "us-east-1a", 10.0), offer("p5", "us-west-2b", 10.5)), 2)
    assert chosen is not None
    requirements = {each["key"]: each["values"] for each in node_pool_requirements(chosen)}
    assert requirements == {
        "karpenter.sh/capacity-type": ["spot"],
        "node.kubernetes.io/instance-type": ["p4d", "p5"],
        "topology.kubernetes.io/zone": ["us-east-1a", "us-west-2b"],
    }
    assert group_overrides(chosen) == {
        "Overrides": [{"InstanceType": "p4d"}, {"InstanceType": "p5"}],
        "AvailabilityZones": ["us-east-1a", "us-west-2b"],
    }
    assert job_pools(chosen)[0] == {"instance_type": "p4d", "zone": "us-east-1a", "price": 10.0}
