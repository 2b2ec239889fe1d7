"""Who is told that the store grows without end, and by how much."""

from __future__ import annotations

import pytest

from unbroken.every import parse_every
from unbroken.training.bucket_growth import growth, keeps_everything


@pytest.mark.parametrize(
    ("every", "kept", "told"),
    [("auto", False, True), ("auto", True, False), ("10min", False, False), (4, False, False)],
)
def test_only_who_leaves_both_the_number_and_the_keeping_to_us_is_told(every: str | int, kept: bool, told: bool):
    assert (keeps_everything(parse_every(every), kept=kept) is not None) == told


def test_growth_is_what_a_save_wrote_as_often_as_an_hour_holds_saves():
    assert "61 GB, and one follows every 1m00s: up to 3.7 TB an hour" in growth(61e9, 60.0)
    assert "3.6 kB an hour" in growth(1.0, 0.0)
