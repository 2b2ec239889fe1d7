"""Traces: what they refuse, and how changes become ticks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.simulate.trace import Trace, from_changes


@pytest.mark.parametrize(
    ("counts", "gap", "prices", "found"),
    [
        ([], 1.0, None, "no time"),
        ([1], 0.0, None, "no time"),
        ([1], float("inf"), None, "no time"),
        ([1, -1], 1.0, None, "-1 instances"),
        ([1, 1], 1.0, [1.0], "1 prices for 2 ticks"),
        ([1], 1.0, [-1.0], "negative or infinite"),
        ([1], 1.0, [float("inf")], "negative or infinite"),
    ],
)
def test_what_cannot_be_a_trace_is_refused(
    counts: list[int], gap: float, prices: list[float] | None, found: str
) -> None:
    with pytest.raises(ConfigError, match=found) as caught:
        Trace("pool", gap, np.array(counts, dtype=np.int64), None if prices is None else np.array(prices))
    assert (caught.value.kind, "pool" in caught.value.message) == ("trace", True)


def test_a_part_keeps_its_prices_and_its_ticks() -> None:
    trace = Trace("pool", 0.5, np.array([0, 1, 2, 3]), np.array([1.0, np.nan, 3.0, 4.0]))
    part = trace.part(1, 3)
    assert (part.counts.tolist(), part.hours) == ([1, 2], 1.0)
    assert np.isnan(part.prices[0])
    assert part.prices[1] == 3.0
    assert trace.up(2).tolist() == [False, False, True, True]


def test_a_record_of_one_moment_or_of_ages_is_refused() -> None:
    with pytest.raises(ConfigError, match="single moment"):
        from_changes("pool", [(1.0, 2)], 0.1, "")
    with pytest.raises(ConfigError, match="unit of its times"):
        from_changes("pool", [(0.0, 2), (1e9, 1)], 0.01, "")


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 5)), min_size=2, max_size=30))
def test_a_tick_has_the_smallest_count_that_was_in_force_in_it(moments: list[tuple[int, int]]) -> None:
    """Against counting it out moment by moment, at tenths of a tick."""
    changes = dict(sorted(moments, key=lambda each: each[0]))
    if len(changes) < 2:
        return
    begin, end = min(changes), max(changes)
    trace = from_changes("pool", [(at / 10.0, count) for at, count in moments], 1.0, "")
    for tick, count in enumerate(trace.counts.tolist()):
        first, last = begin + tick * 10, min(begin + (tick + 1) * 10, end + 1)
        before = changes[max(at for at in changes if at <= first)]
        assert count == min([before, *(each for at, each in changes.items() if first <= at < last)])
