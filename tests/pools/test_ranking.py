"""The order of offers, against formulas, a simulation of single runs, and plain sense."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.pools.expectation import Terms, expect
from unbroken.pools.offers import Offer
from unbroken.pools.ranking import Experience, hazard_of, rank

TERMS = Terms(work=48.0)


def offer(zone: str, spot: float | None = 8.0, **more: object) -> Offer:
    return replace(Offer("a1.large", "us-east-1", zone, spot=spot, spot_mean=spot, on_demand=25.0), **more)  # type: ignore[arg-type]


def zones(*offers: Offer, **options: object) -> list[str]:
    return [each.offer.zone for each in rank(offers, TERMS, **options)]  # type: ignore[arg-type]


def test_the_reference_run_with_notices_costs_what_the_model_says() -> None:
    # 48 h at 8.33, three interruptions in 48 h, 5 s of stall, 90 s of upload, notices in time for 9 of 10, no restart
    terms = Terms(48.0, stall=5 / 3600, upload=90 / 3600, restart=0.0, notice_success=0.9)
    found = expect(terms, price=8.33, hazard=3 / 48)
    assert found.cost == pytest.approx(402.0, abs=1.5)
    assert found.interval == pytest.approx(40 / 60, rel=0.01)
    with_restart = expect(replace(terms, restart=0.15), price=8.33, hazard=3 / 48)
    assert with_restart.cost == pytest.approx(406.0, abs=2.0)
    assert with_restart.rework == pytest.approx(0.12, abs=0.05)


def test_the_mean_agrees_with_runs_drawn_one_by_one() -> None:
    terms = Terms(10.0, stall=0.02, upload=0.05, restart=0.2, notice_success=0.0)
    found = expect(terms, price=1.0, hazard=0.3)
    draw, runs = random.Random(3), 4000
    total = sum(_run(terms, 0.3, found.interval, draw) for _ in range(runs))
    assert total / runs == pytest.approx(found.hours, rel=0.03)


def _run(terms: Terms, hazard: float, interval: float, draw: random.Random) -> float:
    """Paid hours of one run: after each interruption, a restart and whatever was not durable again."""
    paid, left = terms.restart, terms.work
    while True:
        life = draw.expovariate(hazard)
        period = interval + terms.stall
        whole = left + max(0, math.ceil(left / interval) - 1) * terms.stall
        if life >= whole:
            return paid + whole
        kept = max(0, math.floor((life - terms.upload) / period))
        paid, left = paid + life + terms.restart, left - kept * interval


@given(
    st.floats(0.1, 500), st.floats(0.01, 100), st.floats(0, 2), st.floats(0, 1), st.integers(1, 16), st.floats(0.1, 8)
)
def test_more_hazard_never_costs_less(
    work: float, price: float, hazard: float, success: float, nodes: int, speed: float
) -> None:
    terms = Terms(work, nodes=nodes, notice_success=success)
    calm = expect(terms, price=price, hazard=hazard, speed=speed)
    wild = expect(terms, price=price, hazard=hazard * 1.5 + 0.01, speed=speed)
    assert wild.cost >= calm.cost * (1 - 1e-9)
    assert calm.cost >= work / speed * price * nodes
    assert wild.finish >= calm.finish * (1 - 1e-9)
    if math.isfinite(calm.hours):
        assert calm.work + calm.saves + calm.rework + calm.restarts == pytest.approx(calm.hours)


def test_a_pool_that_undoes_more_than_it_does_never_finishes() -> None:
    assert expect(TERMS, price=1.0, hazard=6.0).cost == math.inf


def test_the_cheaper_run_comes_first_and_not_the_cheaper_hour() -> None:
    calm, wild = offer("us-east-1a", 8.0, band=0), offer("us-east-1b", 7.6, band=4)
    assert zones(wild, calm) == ["us-east-1a", "us-east-1b"]
    assert zones(wild, calm, experience={wild.name: Experience(500.0, 0, 9)}) == ["us-east-1b", "us-east-1a"]


def test_finish_times_count_waiting_for_machines() -> None:
    cheap, sure = offer("us-east-1a", 7.0, score=2), offer("us-east-1b", 8.0, score=9)
    assert zones(cheap, sure) == ["us-east-1a", "us-east-1b"]
    assert zones(cheap, sure, by="finish") == ["us-east-1b", "us-east-1a"]


def test_the_faster_machine_is_worth_its_price() -> None:
    slow, fast = offer("us-east-1a", 8.0), replace(offer("us-east-1b", 15.0), instance_type="b1.large")
    assert zones(slow, fast) == ["us-east-1a", "us-east-1b"]
    assert zones(slow, fast, speeds={"b1.large": 2.5}) == ["us-east-1b", "us-east-1a"]


def test_flagged_offers_come_last_but_a_stay_proves_that_one_is_real() -> None:
    good, lone = offer("us-east-1a", 8.0), offer("us-east-1b", 2.0, flags=("lone-price",))
    dear, none = offer("us-east-1c", 24.9, flags=("no-discount",)), offer("us-east-1d", None, flags=("no-price",))
    assert zones(none, dear, lone, good) == ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"]
    assert [each.takes_part for each in rank([good, lone, dear, none], TERMS)] == [True, False, False, False]
    proven = rank([good, lone], TERMS, experience={lone.name: Experience(3.0, 1, 1)})
    assert [each.takes_part for each in proven] == [True, True]


def test_what_own_runs_met_outweighs_the_feed_with_the_hours() -> None:
    calm = offer("us-east-1a", band=0)
    assert hazard_of(calm, Experience()) == pytest.approx(0.1)
    assert hazard_of(calm, Experience(5.0, 5, 5)) == pytest.approx((0.1 * 5 + 5) / 10)
    assert hazard_of(calm, Experience(500.0, 500, 500)) == pytest.approx(1.0, rel=0.02)


def test_experience_is_found_by_a_zones_id_as_well() -> None:
    here = offer("us-east-1a", zone_id="use1-az6")
    found = rank([here], TERMS, experience={"a1.large/use1-az6/spot": Experience(4.0, 2, 3)})
    assert found[0].experience == Experience(4.0, 2, 3)
