"""Names and tree are inverse to each other, and take a state apart as torch's planners do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from unbroken.checkpoint import TensorRef
from unbroken.errors import ConfigError
from unbroken.training.dcp_tree import Leaf, flattened, is_one_value, nested, tensor_name

KEYS = st.text(alphabet="abc_$", min_size=1, max_size=3)
LEAVES = st.one_of(st.integers(), st.none(), st.text(max_size=2), st.just("a tensor"), st.tuples(st.integers()))
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES, lambda each: st.lists(each, max_size=3) | st.dictionaries(KEYS, each, max_size=3), max_leaves=12
    ),
    max_size=4,
)


def with_tensors(value: Any, tensor: Any) -> Any:
    if value == "a tensor":
        return tensor
    if isinstance(value, dict):
        return {key: with_tensors(item, tensor) for key, item in value.items()}
    return [with_tensors(item, tensor) for item in value] if isinstance(value, list) else value


@given(STATES)
def test_a_state_is_taken_apart_as_torch_does(state: dict[str, Any]) -> None:
    _, ways = flatten_state_dict(with_tensors(state, torch.zeros(1)))
    leaves = list(flattened(with_tensors(state, TensorRef("t"))))
    assert {leaf.name: leaf.path for leaf in leaves} == ways


@given(STATES)
def test_what_was_put_together_comes_apart_into_the_same(state: dict[str, Any]) -> None:
    leaves = list(flattened(with_tensors(state, TensorRef("t"))))
    assert list(flattened(nested(leaves))) == leaves


def test_leaves_may_come_in_any_order() -> None:
    leaves = [Leaf(("a", 2), TensorRef("z")), Leaf(("b",), 1), Leaf(("a", 0, "x"), 5)]
    assert nested(leaves) == {"a": [{"x": 5}, {}, TensorRef("z")], "b": 1}


@pytest.mark.parametrize(
    "paths", [[("a",), ("a", "b")], [("a", "b"), ("a",)], [("a", 0), ("a", "b")]], ids=["value", "parts", "kinds"]
)
def test_a_value_inside_of_a_value_is_refused(paths: list[tuple[str | int, ...]]) -> None:
    with pytest.raises(ConfigError, match="a"):
        nested(Leaf(path, 1) for path in paths)


def test_a_tuple_of_tensors_is_one_value_and_a_list_of_them_is_not() -> None:
    assert is_one_value((TensorRef("t"),))
    assert not is_one_value([TensorRef("t")])


def test_tensors_are_called_as_those_of_run() -> None:
    assert tensor_name(("model", "layers.0.weight")) == "model/layers.0.weight"
