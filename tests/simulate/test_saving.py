"""What a cadence costs a replayed run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.policy.decision import Terms
from unbroken.simulate.saving import NO_SAVES, Saving

TERMS = Terms(work=10.0, allowed=20.0, changeover=0.2, on_demand_price=3.0, spot_price=1.0)


def test_without_saves_nothing_changes_and_nothing_is_lost() -> None:
    assert NO_SAVES.terms(TERMS) is TERMS
    assert NO_SAVES.lost(np.array([0.0, 5.0]), np.random.default_rng(0)).tolist() == [0.0, 0.0]


def test_stalls_stretch_the_work_and_losses_the_changeovers() -> None:
    saving = Saving(every=0.5, stall=0.05, upload=0.1, notice_success=0.75)
    terms = saving.terms(TERMS)
    assert terms.work == pytest.approx(11.0)
    assert terms.changeover == pytest.approx(0.2 + 0.25 * (0.25 + 0.1))
    assert terms.longest_changeover == pytest.approx(0.2 + 0.55 + 0.1)


def test_who_never_saves_may_lose_all_and_no_more() -> None:
    saving = Saving(every=float("inf"), stall=0.0, upload=0.0, notice_success=0.0)
    assert saving.terms(TERMS).longest_changeover == pytest.approx(0.2 + TERMS.work)
    assert saving.lost(np.array([0.0, 7.5]), np.random.default_rng(0)).tolist() == [0.0, 7.5]


def test_what_was_not_durable_is_lost_unless_the_notice_saves_it() -> None:
    since = np.array([0.3, 0.5, 0.95, 1.05])
    never = Saving(every=0.5, stall=0.0, upload=0.1, notice_success=0.0)
    assert never.lost(since, np.random.default_rng(0)) == pytest.approx([0.3, 0.1, 0.55, 0.15])
    always = Saving(every=0.5, stall=0.0, upload=0.1, notice_success=1.0)
    assert always.lost(since, np.random.default_rng(0)).tolist() == [0.0] * 4


@given(
    st.floats(0.05, 4.0), st.floats(0.0, 0.04), st.floats(0.0, 0.5), st.floats(0.0, 1.0),
    st.lists(st.floats(0.0, 50.0), min_size=1, max_size=20), st.integers(0, 99),
)  # fmt: skip
def test_a_loss_is_never_more_than_was_done_or_than_the_longest(
    every: float, stall: float, upload: float, success: float, since: list[float], seed: int
) -> None:
    saving = Saving(every, stall, upload, success)
    lost = saving.lost(np.array(since), np.random.default_rng(seed))
    assert (lost >= 0.0).all()
    assert (lost <= np.array(since) + 1e-12).all()
    assert (lost <= saving.longest_loss + 1e-9).all()
