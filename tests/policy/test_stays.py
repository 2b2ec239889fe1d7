"""Counting how long spot stays."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.policy.stays import Seen, Stay, StayRates, stays_of

RATES = StayRates((1.0, 0.5, 0.1), (2.0, 1.0, 0.5), edges=(0.5, 3.0))


def test_stays_are_cut_where_spot_comes_or_goes() -> None:
    assert stays_of([True, True, False, True], 0.5) == [
        Stay(True, 1.0, True, math.inf), Stay(False, 0.5, True, 0.0), Stay(True, 0.5, False, 0.0),
    ]  # fmt: skip


@given(st.lists(st.booleans(), max_size=100), st.floats(0.01, 5.0))
def test_no_hour_and_no_end_is_counted_twice_or_not_at_all(ups: list[bool], hours: float) -> None:
    seen = Seen().add(stays_of(ups, hours))
    for up in (True, False):
        assert sum(seen.hours[up]) == pytest.approx(hours * ups.count(up))
        changes = sum(a == up and b != up for a, b in itertools.pairwise(ups))
        assert sum(seen.ends[up]) == changes


def test_a_rate_is_ends_by_hours_in_its_bucket() -> None:
    stays = [Stay(True, 0.25, True)] * 4000 + [Stay(True, 2.0, True)] * 1000
    rates = Seen(edges=(0.5, 3.0)).add(stays).rates()
    assert rates.up[0] == pytest.approx(4000 / (4000 * 0.25 + 1000 * 0.5), rel=0.01)
    assert rates.up[1] == pytest.approx(1000 / 1500, rel=0.01)


def test_without_stays_the_prior_counts() -> None:
    assert Seen(edges=RATES.edges).rates(RATES).up == pytest.approx(RATES.up)
    assert all(rate == pytest.approx(0.1) for rate in Seen().rates().up)


@given(st.floats(0.0, 6.0), st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.booleans())
def test_chances_of_two_times_in_a_row_multiply(age: float, first: float, second: float, up: bool) -> None:
    whole = RATES.end_chance(up=up, age=age, hours=first + second)
    one, two = RATES.end_chance(up=up, age=age, hours=first), RATES.end_chance(up=up, age=age + first, hours=second)
    assert 1.0 - whole == pytest.approx((1.0 - one) * (1.0 - two))


def test_the_rate_is_that_of_the_bucket() -> None:
    assert [RATES.rate(up=True, age=age) for age in (0.0, *RATES.edges, 1e6)] == [1.0, 0.5, 0.1, 0.1]
