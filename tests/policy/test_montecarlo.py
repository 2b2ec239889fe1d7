"""Drawn trainings agree with the closed form, within what the model leaves out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from unbroken.policy.cost import Setting, chance_at_first_try, forecast
from unbroken.policy.montecarlo import draw

SPOT = Setting(work=48.0, price=25.0 / 3.0, hazard=1.0 / 16.0, restart=0.15, wait=0.2)
SAVED = replace(SPOT, interval=0.5, stall=1.0 / 30.0, upload=0.025)


@pytest.mark.parametrize(
    ("setting", "within"),
    [
        (SAVED, 0.001),
        (replace(SAVED, notice_success=0.9), 0.001),
        (replace(SAVED, hazard=1.0 / 3.2), 0.011),
        (replace(SAVED, hazard=1.0 / 3.2, notice_success=0.9), 0.007),
        (replace(SPOT, hazard=1.0 / 48.0), 0.01),
        (SPOT, 0.02),
        (replace(SPOT, hazard=0.1), 0.02),
    ],
    ids=["16 h", "16 h, notices", "3.2 h", "3.2 h, notices", "bare", "bare, 16 h", "bare, 10 h"],
)
def test_the_mean_is_that_of_the_closed_form(setting: Setting, within: float) -> None:
    drawn, found = draw(setting, 200_000, 1), forecast(setting)
    assert drawn.paid.mean() == pytest.approx(found.paid, rel=within)
    assert drawn.finish.mean() == pytest.approx(found.finish, rel=within)
    assert drawn.interruptions.mean() == pytest.approx(found.interruptions, rel=max(0.02, 2.0 * within))


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    one, two, other = draw(SAVED, 500, 3), draw(SAVED, 500, 3), draw(SAVED, 500, 4)
    assert np.array_equal(one.paid, two.paid)
    assert not np.array_equal(one.paid, other.paid)


def test_who_is_never_interrupted_pays_the_base() -> None:
    drawn = draw(SAVED, 20_000, 5)
    calm = drawn.paid[drawn.interruptions == 0]
    assert np.allclose(calm, SAVED.base)
    assert len(calm) / 20_000 == pytest.approx(chance_at_first_try(SAVED), abs=0.01)
    assert (drawn.paid >= SAVED.base - 1e-9).all()


def test_a_finished_training_lost_what_it_paid_beyond_its_base() -> None:
    """With notices that are always in time nothing but starts is paid twice."""
    drawn = draw(replace(SAVED, notice_success=1.0), 5_000, 6)
    assert (drawn.lost == 0.0).all()
    assert (drawn.paid <= SAVED.base + drawn.interruptions * (SAVED.restart + SAVED.stall) + 1e-6).all()


def test_deadlines_and_quantiles_are_those_of_the_draws() -> None:
    drawn = draw(SAVED, 10_000, 7)
    low, high = drawn.quantiles(drawn.finish, (0.05, 0.95))
    assert drawn.chance_by(high) == pytest.approx(0.95, abs=0.001)
    assert low < drawn.finish.mean() < high
    assert drawn.chance_by(SAVED.work) == 0.0


def test_what_never_ends_is_infinite_and_does_not_take_for_ever() -> None:
    assert np.isinf(draw(replace(SPOT, hazard=2.0), 1_000, 8).paid).all()
    assert np.isinf(draw(replace(SAVED, hazard=20.0), 1_000, 8).paid).all()
    calm = draw(replace(SPOT, hazard=0.0), 10, 9)
    assert (calm.finish == SPOT.base + SPOT.wait).all()
    assert math.isfinite(calm.paid.sum())
