from __future__ import annotations

import time
from pathlib import Path

import pytest

from unbroken.doctor import Place
from unbroken.doctor.store_clock import check_clock, skew
from unbroken.testing import FakeClock


@pytest.mark.parametrize(("written", "expected"), [(100.0, 0.0), (99.0, 0.0), (102.0, 0.0), (110.0, 8.0), (90.0, -9.0)])
def test_skew_is_what_cut_seconds_and_the_put_itself_cannot_explain(written: float, expected: float) -> None:
    assert skew(100.0, 102.0, written) == expected


@pytest.mark.parametrize(
    ("off", "severity", "word"),
    [(-3600.0, "error", "behind"), (-60.0, "warning", "behind"), (400.0, "warning", "ahead")],
)
def test_a_wrong_clock_is_found_by_the_moment_of_an_object(
    tmp_path: Path, off: float, severity: str, word: str
) -> None:
    (found,) = check_clock(Place(uri=str(tmp_path), clock=FakeClock(time.time() + off)))
    assert found.severity == severity
    assert word in found.found
    assert found.why
    assert found.todo
