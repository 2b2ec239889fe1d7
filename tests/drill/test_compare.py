"""Comparing two runs bit by bit: no difference is missed, none is invented, each is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unbroken.drill.compare import Comparison, compare_runs, same_bits
from unbroken.errors import DamagedError, NotFoundError

STATE = {"model/weight": [1.0, 2.0, 3.0], "optimizer/state/0/exp_avg": [0.5]}
VALUES = {"optimizer": {"groups": [{"lr": 0.1}]}, "scheduler": {"last_epoch": 3, "done": (1, 2)}}
LOGGED = {"loss": [(1, 0.5), (2, 0.25)]}


@pytest.fixture
def compared(run_writer: Callable[[str], Any], tmp_path: Path) -> Callable[..., Comparison]:
    """Writes two finished runs, the second with what is given changed, and compares them."""

    def write(name: str, changes: dict[str, Any]) -> Any:
        run = run_writer(str(tmp_path / name))
        run.commit(
            changes.get("step", 2),
            changes.get("tensors", STATE),
            {**VALUES, **changes.get("values", {})},
            changes.get("logged", LOGGED),
        )
        run.finish(changes.get("step", 2))
        return run.journal

    def compare(**changes: Any) -> Comparison:
        return compare_runs(write("first", {}), write("second", changes))

    return compare


def named(found: Comparison) -> list[tuple[str, str]]:
    return [(one.group, one.name) for one in found.differences]


def test_equal_runs_are_identical_and_everything_is_counted(compared: Callable[..., Comparison]) -> None:
    found = compared()
    assert found.identical
    assert (found.tensors, found.bytes, found.logged) == (2, 16, 2)
    assert [group.name for group in found.groups] == ["optimizer", "scheduler", "model", "logged values"]


def test_one_flipped_bit_of_a_tensor_is_found(compared: Callable[..., Comparison]) -> None:
    found = compared(tensors={**STATE, "model/weight": [1.0, 2.0, math.nextafter(3.0, 4.0) + 2.4e-7]})
    assert named(found) == [("model", "weight")]
    assert "1 of 12 bytes differ, the first is byte 8" in found.differences[0].text


def test_minus_zero_is_not_zero(compared: Callable[..., Comparison]) -> None:
    found = compared(
        tensors={**STATE, "optimizer/state/0/exp_avg": [0.5]}, values={"scheduler": {"last_epoch": 3, "done": (1, 2.0)}}
    )
    assert named(found) == [("scheduler", "done/1")]
    assert same_bits(-0.0, 0.0) is False


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(compared: Callable[..., Comparison]) -> None:
    found = compared(tensors={"model/weight": [1.0, 2.0]})
    assert sorted(named(found)) == [("model", "weight"), ("optimizer", "state/0/exp_avg")]
    assert {one.text for one in found.differences} == {"float32[3] and float32[2]", "the tensor is only in the first"}


def test_a_value_only_in_one_is_named(compared: Callable[..., Comparison]) -> None:
    found = compared(values={"extra": {"a": 1}})
    assert [(one.name, one.text) for one in found.differences] == [("a", "nothing and 1")]


def test_a_list_that_became_a_tuple_is_a_difference(compared: Callable[..., Comparison]) -> None:
    found = compared(values={"scheduler": {"last_epoch": 3, "done": [1, 2]}})
    assert [(one.group, one.text) for one in found.differences] == [
        ("scheduler", "the containers differ in type or order")
    ]


def test_a_logged_value_that_differs_is_named_with_its_step(compared: Callable[..., Comparison]) -> None:
    found = compared(logged={"loss": [(1, 0.5), (2, 0.25000000000000006)]})
    assert named(found) == [("logged values", "loss")]
    assert "at step 2: 0.25 and 0.25000000000000006" in found.differences[0].text


def test_a_step_missing_from_the_loss_curve_is_a_difference(compared: Callable[..., Comparison]) -> None:
    assert "2 values and 1" in compared(logged={"loss": [(1, 0.5)]}).differences[0].text


def test_ends_at_different_steps_are_a_difference(compared: Callable[..., Comparison]) -> None:
    found = compared(step=3)
    assert [(one.group, one.text) for one in found.differences] == [("step", "2 and 3")]


def test_an_unfinished_run_is_refused(run_writer: Callable[[str], Any], tmp_path: Path) -> None:
    run = run_writer(str(tmp_path / "run"))
    run.commit(2)
    with pytest.raises(NotFoundError, match="not finished"):
        compare_runs(run.journal, run.journal)


def test_damaged_bytes_are_never_compared(run_writer: Callable[[str], Any], tmp_path: Path) -> None:
    run = run_writer(str(tmp_path / "run"))
    run.commit(2)
    run.finish(2)
    pack = next((tmp_path / "run" / "packs").rglob("*.safetensors"))
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(bytes(data))
    with pytest.raises(DamagedError, match="model/weight"):
        compare_runs(run.journal, run.journal)


def generators(run: Any, states: list[float]) -> Any:
    """A run whose NumPy generator has these states at its checkpoints."""
    for step, state in enumerate(states, start=1):
        python = {"python": (3, (int(state), 2, 3), None)}
        run.commit(step, {"model/weight": [float(step)], "rng/numpy": [state]}, {"rng": dict(python)})
    run.finish(len(states))
    return run.journal


def test_a_generator_that_nobody_seeded_or_used_is_no_difference(
    run_writer: Callable[[str], Any], tmp_path: Path
) -> None:
    first = generators(run_writer(str(tmp_path / "a")), [5.0, 5.0])
    second = generators(run_writer(str(tmp_path / "b")), [6.0, 6.0])
    found = compare_runs(first, second)
    assert named(found) == []
    assert (found.identical, found.unseeded) == (True, ["numpy", "python"])
    assert all(group.differences == 0 for group in found.groups)


@pytest.mark.parametrize("states", [[5.0, 6.0], [6.0, 7.0]], ids=["lost on the way", "used"])
def test_a_generator_that_moved_is_a_difference(
    run_writer: Callable[[str], Any], tmp_path: Path, states: list[float]
) -> None:
    first = generators(run_writer(str(tmp_path / "a")), [5.0, 5.0])
    found = compare_runs(first, generators(run_writer(str(tmp_path / "b")), states))
    assert sorted(named(found)) == [("rng", "numpy"), ("rng", "python/1/0")]
    assert found.unseeded == []


def test_many_differing_numbers_of_one_generator_are_one_line(run_writer: Callable[[str], Any], tmp_path: Path) -> None:
    runs = []
    for name, shift in (("a", 0), ("b", 1)):
        run = run_writer(str(tmp_path / name))
        run.commit(1, {"model/weight": [1.0]}, {"rng": {"python": [n + shift for n in range(625)]}})
        run.finish(1)
        runs.append(run.journal)
    found = compare_runs(*runs)
    assert [(one.name, one.text) for one in found.differences] == [
        ("python", "625 values differ, the first is 0: 0 and 1")
    ]
