"""The warning that a save does not fit the notice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.every import Every, parse_every
from unbroken.training.notice_fit import notice_too_short

GB = 1e9


WILL = "on an interruption the newest scheduled checkpoint will stand"
MAY = "on an interruption the newest scheduled checkpoint may have to stand"


@pytest.mark.parametrize(
    ("seconds", "every", "step_seconds", "loss"),
    [
        (140, "30min", 2.0, 'up to 32m20s of work is lost; every="10min" makes that 12m20s'),
        (140, "10min", 2.0, "up to 12m20s of work is lost"),
        (140, "500", 0.0, 'the work since then is lost; every="10min" or less makes that at most 12m20s'),
        (140, "500", 4.0, 'up to 35m40s of work is lost; every="10min" makes that 12m20s'),
        (140, "auto,loss=15min", 4.0, "up to 15m00s of work is lost"),
        (900, "auto,loss=15min", 4.0, "up to 30m00s of work is lost"),
        (910, "30min", 0.0, 'up to 45m10s of work is lost; every="16min" makes that 31m10s'),
    ],
)
def test_save_that_does_not_fit_is_said_with_what_it_costs(
    seconds: float, every: str, step_seconds: float, loss: str
) -> None:
    text = notice_too_short(61 * GB, seconds, 120, parse_every(every), step_seconds=step_seconds)
    assert text == f"61 GB takes {seconds} s here; the notice is 120 s: {WILL}, and {loss}"


@pytest.mark.parametrize(
    ("seconds", "step_seconds", "why"),
    [(100, 0.0, "slower storage"), (80, 30.0, "the step under way and slower storage")],
)
def test_save_that_fits_without_a_margin_is_said_to_be_in_danger(seconds: float, step_seconds: float, why: str) -> None:
    text = notice_too_short(61 * GB, seconds, 120, Every(seconds=600.0), step_seconds=step_seconds)
    assert text is not None
    assert text.startswith(f"61 GB takes {seconds} s here; the notice is 120 s, too little for {why}: {MAY}, and up to")


@pytest.mark.parametrize(
    ("seconds", "grace", "step_seconds"), [(90, 120, 0.0), (80, 120, 10.0), (3, 5, 0.5), (0, 0, 0.0)]
)
def test_a_save_that_fits_with_a_margin_is_not_spoken_of(seconds: float, grace: float, step_seconds: float) -> None:
    assert notice_too_short(61 * GB, seconds, grace, Every(seconds=600.0), step_seconds=step_seconds) is None


@given(st.floats(0.0, 1e5), st.floats(0.0, 1e4), st.floats(0.0, 1e4))
def test_a_longer_notice_never_brings_a_warning(seconds: float, grace: float, more: float) -> None:
    every = Every(seconds=600.0)
    if notice_too_short(GB, seconds, grace, every) is None:
        assert notice_too_short(GB, seconds, grace + more, every) is None


@given(st.floats(0.1, 1e5), st.floats(0.0, 1e4))
def test_nothing_is_proposed_to_who_saves_as_often_already(seconds: float, grace: float) -> None:
    for every in (Every(seconds=min(600.0, seconds)), parse_every("auto")):
        assert "every=" not in (notice_too_short(GB, seconds, grace, every) or "")
