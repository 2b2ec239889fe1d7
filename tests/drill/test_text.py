"""What a drill prints at its end."""

from __future__ import annotations

import io

import pytest

from unbroken.drill.compare import Comparison, Difference, Group
from unbroken.drill.drill import DrillResult
from unbroken.drill.schedule import Strike
from unbroken.drill.text import print_result
from unbroken.engine import Layout
from unbroken.report import AttemptLine, Cost
from unbroken.report.text import make_console


def attempt(number: int, cause: str) -> AttemptLine:
    return AttemptLine(
        attempt=number, host="host", pool="local", price=2.0, currency="USD", began_at=100.0 * number,
        ended_at=100.0 * number + 50, last_seen_at=100.0 * number + 50, cause=cause, restored_step=10, last_step=30,
        last_step_at=149.0, steps_done=20, steps_repeated=3, startup_seconds=1.0, caught_up_at=160.0,
    )  # fmt: skip


def result(
    *differences: Difference, missed: list[Strike] | None = None, unseeded: list[str] | None = None,
    left_out: list[str] | None = None,
    deterministic: bool | None = None, layout: Layout | None = None,
) -> DrillResult:  # fmt: skip
    groups = [Group("model", 2, 0, 1024, len(differences)), Group("logged values", 0, 600)]
    return DrillResult(
        seed=1, command=["train"], layout=layout or Layout(), baseline_uri="a", interrupted_uri="b", schedule=[],
        attempts=[] if deterministic is False else [attempt(1, "SIGTERM"), attempt(2, "finished")],
        comparison=Comparison(groups, list(differences), unseeded or [], [4, 2], left_out or []),
        on_demand=Cost(3600.0, 25.0, "USD"), spot=Cost(4500.0, 8.0, "USD"), lost_seconds=11.0,
        missed=missed or [], deterministic=deterministic,
    )  # fmt: skip


def printed(found: DrillResult, *, assumed: bool = False) -> str:
    out = io.StringIO()
    print_result(make_console(out), found, assumed_prices=assumed)
    return out.getvalue()


WRONG = Difference("model", "weight", "float32[3]: 1 of 12 bytes differ, the first is byte 8")


def test_the_last_line_of_a_good_drill_counts_what_is_identical() -> None:
    text = printed(result())
    assert text.rstrip().splitlines()[-1] == "identical: 2 tensors, 1024 bytes, 600 logged values, bit for bit"


def test_cost_is_paid_time_times_price_and_says_what_interruptions_added() -> None:
    text = printed(result())
    assert "25.00 USD" in text
    assert "10.00 USD" in text  # 1.25 hours at 8
    assert "added 15m00s of paid time, 2.00 USD" in text
    assert "6 steps were done twice" in text
    assert "assumed" not in text
    assert "assumed prices" in printed(result(), assumed=True)


def test_every_difference_is_named_and_nothing_is_called_identical() -> None:
    text = printed(result(WRONG))
    assert "differs: model/weight: float32[3]: 1 of 12 bytes differ, the first is byte 8" in text
    assert "no: 1 differ" in text
    assert "identical:" not in text
    assert "--check-determinism" in text


def test_a_long_list_of_differences_is_cut_and_says_so() -> None:
    text = printed(result(*[WRONG] * 25))
    assert text.count("differs:") == 20
    assert "and 5 more" in text


@pytest.mark.parametrize(
    ("deterministic", "words"), [(True, "so it is the resume"), (False, "so no resume could be exact")]
)
def test_the_advice_follows_from_the_check_of_determinism(deterministic: bool, words: str) -> None:
    text = printed(result(WRONG, deterministic=deterministic))
    assert words in text
    assert ("two undisturbed trainings" in text) is not deterministic
    assert ("Cost of this training" in text) is deterministic


def test_an_interruption_without_effect_is_told_and_fails_the_drill() -> None:
    found = result(missed=[Strike("ec2-notice", 290, 0.0)])
    assert not found.passed
    assert "two-minute EC2 notice at step 290 had no effect" in printed(found)


def test_with_several_nodes_the_one_that_was_not_interrupted_is_named() -> None:
    found = result(missed=[Strike("sigterm", 290, 0.0, node=2)], layout=Layout(3, 1))
    assert "SIGTERM on node 2 at step 290 had no effect" in printed(found)


def test_an_unseeded_generator_is_noted() -> None:
    assert "rng/python was never seeded and never used" in printed(result(unseeded=["python"]))


def test_what_was_not_compared_is_said() -> None:
    assert "not compared" not in printed(result())
    said = printed(result(left_out=["loader", "rng"]))
    assert "not compared, since the trainings ended with 4 and 2 ranks: loader, rng" in said
