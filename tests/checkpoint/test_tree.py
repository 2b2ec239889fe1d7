"""The state tree: values to JSON and back."""

from __future__ import annotations

import datetime
import enum
import math
import pathlib
import struct
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unbroken.checkpoint import Tagged, TensorRef, decode_tree, encode_tree
from unbroken.checkpoint.tree import tensor_names
from unbroken.errors import ConfigError, FormatError

_floats = st.floats(allow_nan=False) | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e308, 0.1, 1e16])
_integers = st.integers() | st.integers(-(2**70), 2**70) | st.sampled_from([2**53 - 1, 2**53, -(2**53), 2**64])
_text = st.text(max_size=8) | st.sampled_from(["$tensor", "$dict", "$", "", "a/b", "\0", "\u2028", "\U0001f600"])
_numbers = st.booleans() | _integers | _floats
_keys = st.none() | _text | _numbers | st.binary(max_size=4) | st.tuples(_integers, _text)
_tagged = st.one_of(
    st.builds(Tagged, st.just("size"), st.lists(st.integers(0, 2**40), max_size=4)),
    st.builds(Tagged, st.sampled_from(["dtype", "device", "ndarray"]), _text),
    st.builds(Tagged, st.just("scalar"), st.tuples(st.just("float64"), _numbers).map(list)),
)
_leaves = st.one_of(
    st.none(), _text, _numbers, st.complex_numbers(allow_nan=False), st.binary(max_size=16),
    st.builds(TensorRef, _text), _tagged, st.sets(_keys, max_size=4), st.frozensets(_keys, max_size=4),
)  # fmt: skip
_values = st.recursive(
    _leaves,
    lambda below: st.one_of(
        st.lists(below, max_size=4),
        st.lists(below, max_size=4).map(tuple),
        st.dictionaries(_text, below, max_size=4),
        st.dictionaries(_keys, below, max_size=4),
        st.dictionaries(_keys, below, max_size=4).map(OrderedDict),
    ),
    max_leaves=20,
)


def shape_of(value: Any) -> Any:
    """A value with the types of all its parts and the bits of its floats, so that == tells everything apart."""
    kind = type(value)
    if kind is float:
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    if kind is complex:
        return kind, shape_of(value.real), shape_of(value.imag)
    if kind in (list, tuple):
        return kind, [shape_of(item) for item in value]
    if kind in (dict, OrderedDict):
        return kind, [(shape_of(key), shape_of(item)) for key, item in value.items()]
    if kind in (set, frozenset):
        return kind, sorted(repr(shape_of(item)) for item in value)
    if kind is Tagged:
        return kind, value.tag, shape_of(value.value)
    return kind, value


def through_json(value: Any) -> Any:
    return decode_tree(msgspec.json.decode(msgspec.json.encode(encode_tree(value))))


@given(value=_values)
@example(value={"$tensor": "no tensor"})
@example(value={"a": {1: {(2, "x"): -0.0}}})
@example(value=[{True: "a"}, {1: "a"}, {1.0: "a"}, {"1": "a"}])
@example(value=OrderedDict([("b", 1), ("a", 2)]))
@example(value={"b": 1, "a": 2})
def test_every_value_comes_back_exactly_types_and_order_and_bits_included(value: Any) -> None:
    assert shape_of(through_json(value)) == shape_of(value)


@given(value=_values)
def test_what_is_stored_is_strict_json_that_any_reader_understands(value: Any) -> None:
    import json

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    data = msgspec.json.encode(encode_tree(value))
    assert shape_of(decode_tree(json.loads(data, parse_constant=refuse))) == shape_of(value)


def test_integers_that_javascript_would_round_are_stored_as_digits() -> None:
    assert encode_tree(2**53 - 1) == 2**53 - 1
    assert encode_tree(2**53) == {"$int": str(2**53)}


class _Colour(enum.IntEnum):
    RED = 1


class _Named(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), "builtins.object"),
        (_Colour.RED, "_Colour"),
        (_Named("x"), "_Named"),
        (pathlib.PurePosixPath("x"), "PurePosixPath"),
        (datetime.timedelta(1), "datetime.timedelta"),
        (defaultdict(int), "defaultdict"),
        (Counter("x"), "Counter"),
        (bytearray(b"x"), "bytearray"),
        (range(3), "range"),
        (len, "builtin_function_or_method"),
        (int, "builtins.type"),
    ],
)
def test_a_value_that_cannot_be_stored_is_refused_with_the_way_to_it(value: Any, kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        encode_tree({"optimizer": {"groups": [{"lr": 1.0}, {"thing": (value,)}]}})
    assert (caught.value.kind, caught.value.exit_code) == ("state-type", 78)
    assert "state['optimizer']['groups'][1]['thing'][0]" in caught.value.message
    assert kind in caught.value.message
    assert "pickle" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "kind", "where"),
    [
        ({"a": ["\ud800"]}, "state-text", "state['a'][0]"),
        ({"a": {"\ud800": 1}}, "state-text", "of state['a']"),
        ({"a": TensorRef("\udcff")}, "state-text", "state['a']"),
        ({"a": Tagged("device", "\udcff")}, "state-text", "state['a']"),
        ({"a": 10**5000}, "state-int", "state['a']"),
        ({"a": Tagged("tensor", "x")}, "state-type", "state['a']"),
        ({"a": {frozenset({print}): 1}}, "state-type", "of state['a']"),
        ({"a": Tagged("scalar", ["float64", object()])}, "state-type", "state['a']"),
    ],
)
def test_a_value_that_json_has_no_place_for_is_refused_with_the_way_to_it(value: Any, kind: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        encode_tree(value)
    assert caught.value.kind == kind
    assert where in caught.value.message


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigError) as caught:
        encode_tree({"a": endless}, "the state")
    assert caught.value.kind == "state-depth"
    assert "the state" in caught.value.message


def test_whatever_may_be_written_is_shallow_enough_to_be_read() -> None:
    value: Any = 1
    for _ in range(50):
        value = (value,)
        assert through_json(value) == value
    with pytest.raises(ConfigError) as caught:
        encode_tree((value,))
    assert caught.value.kind == "state-depth"


@pytest.mark.parametrize(
    "node",
    [
        {"$pickle": "gASVAAAA"},
        {"$tensor": 5},
        {"$tensor": "a", "more": 1},
        {"$tensor": "a", "$tuple": []},
        {"$tuple": "abc"},
        {"$tuple": {"a": 1}},
        {"$dict": [["a"]]},
        {"$dict": [["a", 1, 2]]},
        {"$dict": [[[1], 2]]},
        {"$dict": {"a": 1}},
        {"$ordered": 5},
        {"$set": [[1]]},
        {"$set": 1},
        {"$frozenset": [{}]},
        {"$int": "1_000"},
        {"$int": "1.5"},
        {"$int": 5},
        {"$int": "9" * 5000},
        {"$float": "1.5"},
        {"$float": 1.5},
        {"$float": ["nan"]},
        {"$complex": [1.0]},
        {"$complex": ["a", 1.0]},
        {"$bytes": "not base64!"},
        {"$bytes": 5},
        {"$size": ["a"]},
        {"$size": [True]},
        {"$dtype": None},
        {"$device": 0},
        {"$ndarray": {}},
        {"$scalar": ["float64"]},
        {"$scalar": ["float64", "os.system"]},
        {"$scalar": [5, 5]},
    ],
)
def test_a_tag_that_we_do_not_know_or_that_holds_nonsense_is_of_another_format(node: Any) -> None:
    with pytest.raises(FormatError) as caught:
        decode_tree({"model": [node]})
    assert caught.value.exit_code == 13
    assert caught.value.kind == "tag"


def test_a_tree_that_is_too_deep_is_refused_and_breaks_nothing() -> None:
    node: Any = []
    for _ in range(100_000):
        node = [node]
    with pytest.raises(FormatError) as caught:
        decode_tree(node)
    assert caught.value.kind == "state-depth"


def test_tensors_are_found_in_order_and_once() -> None:
    tree = {
        "b": [TensorRef("2"), (TensorRef("1"), {3: TensorRef("2")})],
        "a": Tagged("ndarray", "0"),
        "c": {"$tensor": "not one"},
        "d": OrderedDict(x=TensorRef("4")),
    }
    assert tensor_names(encode_tree(tree)) == ["2", "1", "0", "4"]
