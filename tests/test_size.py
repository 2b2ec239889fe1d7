from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.size import size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (7, "7 B"), (999, "999 B"), (1000, "1.0 kB"), (3_100_000_000, "3.1 GB"), (61e9, "61 GB"),
        (9.96e6, "10 MB"), (999.7e6, "1.0 GB"), (2.5e12, "2.5 TB"), (1e18, "1000 PB"),
    ],
)  # fmt: skip
def test_sizes_have_two_figures_at_least(size: float, text: str) -> None:
    assert size_text(size) == text


@given(st.floats(0, 9e17))
def test_what_is_written_is_the_size_within_rounding(size: float) -> None:
    number, unit = size_text(size).split()
    value = float(number) * 1000.0 ** ["B", "kB", "MB", "GB", "TB", "PB"].index(unit)
    assert value == pytest.approx(size, rel=0.051, abs=0.5)
