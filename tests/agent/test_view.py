from __future__ import annotations

import pytest

from unbroken.agent.view import SpeedMeter, View, format_view
from unbroken.link.progress import Progress

NOW = 1_750_000_000.0
PAGE = Progress(step=1234, until=10000, at=NOW, next_save_at=NOW + 18)


def test_line_says_everything_at_once() -> None:
    view = View(3, PAGE, 8.1, durable_step=1200, durable_at=NOW - 42, notice_source="ec2", deadline=NOW + 97)
    assert format_view(view, NOW) == (
        "attempt 3 · step 1234/10000 · 8.1 steps/s · durable 1200 (42s ago) · next save in 18s · NOTICE ec2: 1m37s left"
    )


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (View(phase="starting"), "starting"),
        (View(1, phase="restoring"), "attempt 1 · restoring · nothing durable yet"),
        (
            View(2, phase="restoring", ranks=4, ranks_here=2),
            "attempt 2 · 4 ranks, 2 here · restoring · nothing durable yet",
        ),
        (
            View(2, phase="restoring", ranks=2, ranks_here=2),
            "attempt 2 · 2 ranks, all here · restoring · nothing durable yet",
        ),
        (
            View(1, PAGE, saving_last=1235),
            "attempt 1 · step 1234/10000 · nothing durable yet · saving step 1235 before leaving",
        ),
        (
            View(1, Progress(5, -1, NOW, next_save_step=8)),
            "attempt 1 · step 5 · nothing durable yet · next save at step 8",
        ),
        (View(1, Progress(5, 9, NOW), 0.25), "attempt 1 · step 5/9 · 4.0 s/step · nothing durable yet"),
        (
            View(1, Progress(5, 9, NOW - 300), 2.0),
            "attempt 1 · step 5/9 · 2.0 steps/s · no step for 5m00s · nothing durable yet",
        ),
        (View(1, Progress(9, 9, NOW - 300), 2.0), "attempt 1 · step 9/9 · 2.0 steps/s · nothing durable yet"),
    ],
)  # fmt: skip
def test_line_leaves_out_what_is_not_known(view: View, line: str) -> None:
    assert format_view(view, NOW) == line


def test_time_left_is_never_negative() -> None:
    assert format_view(View(1, notice_source="ec2", deadline=NOW - 5), NOW).endswith("NOTICE ec2: 0.0s left")


def test_speed_is_that_of_the_last_half_minute() -> None:
    meter = SpeedMeter()
    for second in range(100):
        meter.add(Progress(step=second, until=1000, at=NOW + second))
    for second in range(100, 160):
        meter.add(Progress(step=100 + (second - 100) * 5, until=1000, at=NOW + second))
    assert meter.speed == pytest.approx(5.0)


def test_speed_begins_anew_when_the_step_goes_back() -> None:
    meter = SpeedMeter()
    meter.add(Progress(10, 100, NOW))
    meter.add(Progress(20, 100, NOW + 1))
    assert meter.speed == 10.0
    meter.add(Progress(5, 100, NOW + 2))
    assert meter.speed == 0.0


def test_same_reading_twice_changes_no_speed() -> None:
    meter = SpeedMeter()
    for page in (Progress(10, 100, NOW), Progress(20, 100, NOW + 1), Progress(20, 100, NOW + 1)):
        meter.add(page)
    assert meter.speed == 10.0
