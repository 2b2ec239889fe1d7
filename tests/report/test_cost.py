"""Cost is paid time times price, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from unbroken.report import Cost, build_timeline, cost_of
from unbroken.report.cost import money


def test_an_hour_costs_the_price_of_an_hour() -> None:
    assert Cost(3600.0, 8.33, "USD").amount == 8.33


def test_attempts_are_paid_from_claim_to_end(interrupted: Any) -> None:
    costs = cost_of(build_timeline(interrupted.entries, interrupted.state))
    assert costs == [Cost(34.0 + 23.0 + 54.0, 6.0, "USD")]


def test_attempts_without_a_price_cost_nothing_known(hand: Any) -> None:
    unpriced = type(hand)()
    unpriced.claim(0.0)
    unpriced.end(100.0, "failed", -1)
    assert cost_of(build_timeline(unpriced.entries, unpriced.state)) == []


@pytest.mark.parametrize(
    ("amount", "text"),
    [(412.5, "412.50 USD"), (8.33, "8.33 USD"), (0.09314, "0.0931 USD"), (0.0, "0.00 USD"), (-0.25, "-0.2500 USD")],
)
def test_small_amounts_keep_their_digits(amount: float, text: str) -> None:
    assert money(amount, "USD") == text
