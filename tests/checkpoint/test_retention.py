"""Which checkpoints the policies keep, and how people write them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.checkpoint.retention import KeepAny, KeepBest, KeepEvery, KeepLast, Policy, choose, why_kept
from unbroken.checkpoint.retention_text import keep_policy, parse_keep
from unbroken.errors import ConfigError
from unbroken.journal import CheckpointRecord
from unbroken.journal.events import CheckpointCommitted

HOUR = 3600.0


def records_of(*steps: int, at: tuple[float, ...] = ()) -> list[CheckpointRecord]:
    """Commits of these steps in this order; manifest keys are ``m1``, ``m2``, ..."""
    moments = at or tuple(float(n) for n in range(len(steps)))
    return [
        CheckpointRecord(n, 1, moments[n - 1], CheckpointCommitted(step, f"m{n}", "", 0, 0))
        for n, step in enumerate(steps, 1)
    ]


def kept_steps(records: list[CheckpointRecord], policy: Policy | None, values: Any = None, **more: Any) -> list[int]:
    return [record.step for record in choose(records, values or {}, policy, **more).kept]


def test_no_policy_keeps_everything() -> None:
    records = records_of(1, 2, 3)
    assert choose(records, {}, None) == (records, [])


def test_last_keeps_the_newest_commits_and_not_the_highest_steps() -> None:
    assert kept_steps(records_of(10, 20, 30, 25, 28), KeepLast(3)) == [30, 25, 28]


def test_the_two_newest_are_kept_whatever_the_policy_says() -> None:
    assert kept_steps(records_of(10, 20, 30), KeepLast(1)) == [20, 30]
    assert kept_steps(records_of(10, 20, 30), KeepEvery(steps=1000)) == [20, 30]


def test_the_newest_two_that_are_sound_are_kept_besides_damaged_ones() -> None:
    records = records_of(10, 20, 30, 40, 50)
    assert kept_steps(records, KeepLast(1), damaged={"m4", "m5"}) == [20, 30, 40, 50]


def test_every_keeps_the_first_at_or_after_each_multiple() -> None:
    records = records_of(40, 90, 100, 150, 260, 299, 410, 420, 430)
    assert kept_steps(records, KeepEvery(steps=100)) == [100, 260, 410, 420, 430]


def test_every_keeps_the_later_commit_of_a_step_that_was_trained_twice() -> None:
    records = records_of(100, 150, 100, 160, 170)
    choice = choose(records, {}, KeepEvery(steps=100))
    assert [record.n for record in choice.kept] == [3, 4, 5]


def test_every_hours_keeps_the_first_of_each_period() -> None:
    at = (0.5 * HOUR, 1.5 * HOUR, 2.0 * HOUR, 3.9 * HOUR, 7.0 * HOUR, 7.1 * HOUR, 7.2 * HOUR)
    assert kept_steps(records_of(1, 2, 3, 4, 5, 6, 7, at=at), KeepEvery(hours=2)) == [1, 3, 5, 6, 7]


def test_best_keeps_the_smallest_or_the_largest_and_of_equals_the_newer() -> None:
    records = records_of(1, 2, 3, 4, 5, 6)
    values = {f"m{n}": {"loss": loss} for n, loss in enumerate([3.0, 1.0, 1.0, 2.0, 5.0, 4.0], 1)}
    assert kept_steps(records, KeepBest("loss"), values) == [3, 5, 6]
    assert kept_steps(records, KeepBest("loss", 3), values) == [2, 3, 4, 5, 6]
    assert kept_steps(records, KeepBest("loss", mode="max"), values) == [5, 6]
    assert kept_steps(records, KeepBest("loss", 3, "max"), values) == [1, 5, 6]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_the_best(value: float) -> None:
    values = {"m1": {"loss": value}, "m2": {"loss": 9.0}, "m3": {}, "m4": {}, "m5": {}}
    assert kept_steps(records_of(1, 2, 3, 4, 5), KeepBest("loss"), values) == [2, 4, 5]
    assert kept_steps(records_of(1, 2, 3, 4, 5), KeepBest("loss", mode="max"), values) == [2, 4, 5]


def test_a_checkpoint_whose_values_are_not_known_is_kept() -> None:
    values = {"m2": {"loss": 1.0}, "m3": {"loss": 2.0}, "m4": {}, "m5": {}}
    assert kept_steps(records_of(1, 2, 3, 4, 5), KeepBest("loss"), values) == [1, 2, 4, 5]


def test_a_damaged_best_takes_no_sound_ones_place() -> None:
    values = {f"m{n}": {"loss": float(n)} for n in range(1, 6)}
    assert kept_steps(records_of(1, 2, 3, 4, 5), KeepBest("loss"), values, damaged={"m1"}) == [1, 2, 4, 5]


def test_reasons_name_every_policy_that_keeps_a_checkpoint() -> None:
    policy = parse_keep("last=3,every=20")
    assert why_kept(records_of(10, 20, 30, 40), {}, policy) == {
        "m2": ["last=3", "every=20"], "m3": ["newest", "last=3"], "m4": ["newest", "last=3", "every=20"],
    }  # fmt: skip


policies = st.one_of(
    st.builds(KeepLast, st.integers(1, 5)),
    st.builds(KeepEvery, steps=st.integers(1, 50)),
    st.builds(KeepEvery, hours=st.floats(0.1, 10)),
    st.builds(KeepBest, st.just("loss"), st.integers(1, 3), st.sampled_from(["min", "max"])),
)
histories = st.lists(
    st.tuples(st.integers(0, 200), st.floats(0, 1e6), st.floats(allow_nan=True, allow_infinity=True), st.booleans()),
    max_size=12,
)


@given(histories, policies, policies)
def test_a_union_keeps_what_either_keeps_and_choosing_again_retires_nothing(
    history: list[tuple[int, float, float, bool]], one: Policy, other: Policy
) -> None:
    records = records_of(*(step for step, *_ in history), at=tuple(at for _, at, *_ in history))
    values = {f"m{n}": {"loss": loss} for n, (*_, loss, _bad) in enumerate(history, 1)}
    damaged = {f"m{n}" for n, (*_, bad) in enumerate(history, 1) if bad}

    def keys(policy: Policy, among: list[CheckpointRecord]) -> set[str]:
        return {record.event.manifest for record in choose(among, values, policy, damaged=damaged).kept}

    both = choose(records, values, one | other, damaged=damaged)
    assert {record.event.manifest for record in both.kept} == keys(one, records) | keys(other, records)
    assert sorted([*both.kept, *both.retired], key=lambda record: record.n) == records
    assert choose(both.kept, values, one | other, damaged=damaged) == (both.kept, [])
    assert both.kept[-2:] == records[-2:]
    sound = [record for record in records if record.event.manifest not in damaged]
    assert set(map(id, sound[-2:])) <= set(map(id, both.kept))


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("last=3", KeepLast(3)),
        ("every=10000", KeepEvery(steps=10000)),
        ("every=6h", KeepEvery(hours=6.0)),
        ("best=loss", KeepBest("loss")),
        ("best=val/accuracy:max", KeepBest("val/accuracy", mode="max")),
        ("best=loss:min:3", KeepBest("loss", 3)),
        ("best=loss:2", KeepBest("loss", 2)),
        (
            " last = 3 , every=10000,every=1d,best=loss ",
            KeepAny((KeepLast(3), KeepEvery(steps=10000), KeepEvery(hours=24.0), KeepBest("loss"))),
        ),
    ],
)
def test_the_textual_form_is_read_and_written(text: str, policy: Policy) -> None:
    assert parse_keep(text) == policy
    assert parse_keep(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lats=3", "'lats=3'"),
        ("last=3,evry=5", "'evry=5'"),
        ("last", "last has no value"),
        ("last=", "last has no value"),
        ("last=0", "'last=0'"),
        ("last=-1", "'-1' is no whole number"),
        ("last=many", "'many' is no whole number"),
        ("every=0", "'every=0'"),
        ("every=soon", "'soon' is not a duration"),
        ("best=loss:least", "'least' is neither min nor max"),
        ("best=loss:0", "'best=loss:0'"),
        ("", "no key ''"),
        ("last=3,", "no key ''"),
    ],
)
def test_a_wrong_piece_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keep(text)
    assert caught.value.kind == "keep"
    assert said in caught.value.message
    assert "last=3,every=10000,best=loss" in caught.value.hint


@pytest.mark.parametrize(("text", "near"), [("lats=3", "last"), ("evry=5", "every"), ("Best=loss", "best")])
def test_a_misspelt_key_is_answered_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{near}'"):
        parse_keep(text)


def test_keep_takes_text_policies_or_nothing() -> None:
    assert keep_policy(None) is None
    assert keep_policy("last=2") == KeepLast(2)
    assert keep_policy(KeepLast(2)) == KeepLast(2)
    assert keep_policy([KeepLast(2), KeepLast(3) | KeepBest("x")]) == KeepAny((KeepLast(2), KeepLast(3), KeepBest("x")))


@pytest.mark.parametrize("value", [3, [], ["last=3"], [KeepLast(1), None], {"last": 3}])
def test_what_is_no_policy_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="no retention policy"):
        keep_policy(value)


@pytest.mark.parametrize(
    ("policy", "arguments"),
    [
        (KeepLast, {"n": 0}),
        (KeepLast, {"n": True}),
        (KeepLast, {"n": 1.5}),
        (KeepEvery, {}),
        (KeepEvery, {"steps": 1, "hours": 1}),
        (KeepEvery, {"steps": -1}),
        (KeepEvery, {"hours": 0}),
        (KeepEvery, {"hours": math.inf}),
        (KeepBest, {"metric": ""}),
        (KeepBest, {"metric": "x", "n": 0}),
        (KeepBest, {"metric": "x", "mode": "low"}),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: type[Policy], arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(**arguments)
    assert caught.value.kind == "keep"
