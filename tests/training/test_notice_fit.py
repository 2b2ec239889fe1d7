"""The warning that a save does not fit the notice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.every import Every, parse_every
from unbroken.training.notice_fit import notice_too_short

GB = 1e9


@pytest.mark.parametrize(
    ("seconds", "grace", "every", "step_seconds", "text"),
    [
        (140, 120, "30min", 2.0,
         "61 GB takes 140 s here; the notice is 120 s: on an interruption the newest scheduled checkpoint will stand, "
         'and up to 32m20s of work is lost; every="10min" makes that 12m20s'),
        (140, 120, "10min", 2.0,
         "61 GB takes 140 s here; the notice is 120 s: on an interruption the newest scheduled checkpoint will stand, "
         "and up to 12m20s of work is lost"),
        (140, 120, "500", 0.0,
         "61 GB takes 140 s here; the notice is 120 s: on an interruption the newest scheduled checkpoint will stand, "
         'and the work since then is lost; every="10min" or less makes that at most 12m20s'),
        (140, 120, "500", 4.0,
         "61 GB takes 140 s here; the notice is 120 s: on an interruption the newest scheduled checkpoint will stand, "
         'and up to 35m40s of work is lost; every="10min" makes that 12m20s'),
        (140, 120, "auto,loss=15min", 4.0,
         "61 GB takes 140 s here; the notice is 120 s: on an interruption the newest scheduled checkpoint will stand, "
         "and up to 15m00s of work is lost"),
        (900.5, 120, "30min", 0.0,
         "61 GB takes 900 s here; the notice is 120 s: on an interruption the newest scheduled checkpoint will stand, "
         'and up to 45m00s of work is lost; every="16min" makes that 31m00s'),
        (100, 120, "10min", 0.0,
         "61 GB takes 100 s here; the notice is 120 s, too little for slower storage: on an interruption the newest "
         "scheduled checkpoint may have to stand, and up to 11m40s of work is lost"),
        (80, 120, "10min", 30.0,
         "61 GB takes 80 s here; the notice is 120 s, too little for the step under way and slower storage: on an "
         "interruption the newest scheduled checkpoint may have to stand, and up to 11m20s of work is lost"),
    ],
)  # fmt: skip
def test_warning_says_what_does_not_fit_and_what_it_costs(
    seconds: float, grace: float, every: str, step_seconds: float, text: str
) -> None:
    assert notice_too_short(61 * GB, seconds, grace, parse_every(every), step_seconds=step_seconds) == text


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
