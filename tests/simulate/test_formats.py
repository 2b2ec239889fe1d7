"""Traces in the forms in which others publish them; the samples here are made by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.simulate.formats import parse_trace, read_trace

MINUTE = 1.0 / 60.0


def test_ticks_are_read_with_their_length_and_their_prices() -> None:
    text = json.dumps({"metadata": {"gap_seconds": 195}, "data": [0, 4, 3, 0], "prices": [1.5, None, 2, 2]})
    trace = parse_trace("pool.json", text)
    assert trace.gap == pytest.approx(195 / 3600)
    assert trace.counts.tolist() == [0, 4, 3, 0]
    assert trace.prices[[0, 2]].tolist() == [1.5, 2.0]
    assert trace.prices[1] != trace.prices[1]
    assert trace.up(4).tolist() == [False, True, False, False]
    assert trace.hours == pytest.approx(4 * 195 / 3600)


def test_ticks_without_prices_have_none() -> None:
    assert parse_trace("pool.json", '{"metadata": {"gap_seconds": 60}, "data": [1]}').prices is None


def test_comings_and_goings_are_counted() -> None:
    trace = parse_trace("p3.csv", "0,add,a\n0,add,b\n60000,remove,a\n120000,remove,a\n180000,add,c\n240000,add,c\n")
    assert trace.gap == pytest.approx(MINUTE)
    assert trace.counts.tolist() == [2, 1, 1, 2]


def test_dated_counts_are_put_in_order() -> None:
    trace = parse_trace("a.txt", "2021-12-10, 13:09:00, 70\n2021-12-10, 13:07:00, 80\n2021-12-10, 13:10:00, 60\n")
    assert trace.counts.tolist() == [80, 80, 70]


@pytest.mark.parametrize(
    ("text", "counts", "unit"),
    [
        ("0,0\n120,0\n120,2\n240,2\n", [0, 0, 2, 2], "s"),
        ("0,1\n60000,2\n180000,2\n", [1, 2, 2], "ms"),
        ("0.000,3\n0.025,3\n0.025,1\n0.050,1\n", [3, 1, 1], "h"),
    ],
)
def test_the_unit_of_counts_is_seen_and_said(text: str, counts: list[int], unit: str) -> None:
    trace = parse_trace("counts.csv", text)
    assert trace.counts.tolist() == counts
    assert trace.form.endswith(f"taken for {unit}")


def test_a_unit_that_is_said_outranks_the_one_that_is_seen() -> None:
    assert parse_trace("counts.csv", "0,1\n2,0\n", "h").hours == pytest.approx(2.0)


def test_segments_last_as_long_as_their_last_entry() -> None:
    lines = [[0, "add", {"nodes": ["a", "b"], "duration": 60000}], [60000, "no-op", {"nodes": [], "duration": 60000}],
             [120000, "migration", {"nodes": [], "duration": 60000}], [180000, "remove", {"nodes": ["a"], "duration": 120000}]]  # fmt: skip  # noqa: E501
    trace = parse_trace("segment.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert trace.counts.tolist() == [2, 2, 2, 1, 1]


def test_an_absence_shorter_than_a_tick_is_not_lost() -> None:
    trace = parse_trace("p3.csv", "0,add,a\n70000,remove,a\n80000,add,a\n240000,add,a\n")
    assert trace.counts.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "it is empty"),
        ("what\n", "no known form"),
        ("{", "not JSON"),
        ("{}", "gap_seconds"),
        ('{"metadata": {"gap_seconds": 0}, "data": [1]}', "covers no time"),
        ('{"metadata": {"gap_seconds": 60}, "data": [1, -1]}', "data[1] is -1"),
        ('{"metadata": {"gap_seconds": 60}, "data": [1.5]}', "no number of instances"),
        ('{"metadata": {"gap_seconds": 60}, "data": [1], "prices": [1, 2]}', "2 prices for 1 ticks"),
        ('{"metadata": {"gap_seconds": 60}, "data": [1], "prices": ["a"]}', "prices[0] is 'a'"),
        ("0,8\n", "single moment"),
        ("0,8\n1\n", "line 2 has 1 columns"),
        ("0,add,a\n5,steal,a\n", "'steal' in line 2"),
        ("2021-13-10, 13:09:00, 70\n", "line 1 has no date"),
        ('[0, "add", 3]', "line 1 is not"),
        ('[0, "add", {"nodes": [3]}]', "no list of names"),
        ("[1, 2", "not JSON"),
    ],
)
def test_what_is_wrong_is_said(text: str, found: str) -> None:
    with pytest.raises(ConfigError, match="the trace x") as caught:
        parse_trace("x", text)
    assert found in caught.value.message
    assert caught.value.kind == "trace"


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00\xff")
    for name in ("bytes", "missing"):
        with pytest.raises(ConfigError, match=name):
            read_trace(tmp_path / name)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_TICKS = st.fixed_dictionaries(
    {"metadata": st.fixed_dictionaries({"gap_seconds": _JSON}) | _JSON, "data": st.lists(_JSON, max_size=5) | _JSON},
    optional={"prices": st.lists(_JSON, max_size=5) | _JSON},
)
_SEGMENT = st.tuples(
    st.integers(-1, 10**7) | _JSON,
    st.sampled_from(["add", "remove", "no-op", "migration"]) | _JSON,
    st.fixed_dictionaries({}, optional={"nodes": st.lists(st.text(max_size=3)) | _JSON, "duration": _JSON}) | _JSON,
)
_CELL = st.one_of(
    st.integers(-2, 10**7).map(str), st.floats().map(str), st.sampled_from(["add", "remove", "2021-12-10", "13:09:45", ""]),  # noqa: E501
    st.text(max_size=6),
)  # fmt: skip
_LINES = st.lists(st.lists(_CELL, min_size=1, max_size=4).map(",".join), max_size=6).map("\n".join)
_GOOD = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["add", "remove"]), st.sampled_from("abc")), max_size=20
)


@given(
    st.one_of(
        st.text(), _LINES, _TICKS.map(json.dumps), st.lists(_SEGMENT, max_size=4).map(lambda all_: "\n".join(map(json.dumps, all_))),  # noqa: E501
        _GOOD.map(lambda events: "\n".join(f"{at},{event},{node}" for at, event, node in events)),
    )
)  # fmt: skip
def test_any_text_is_a_trace_or_said_to_be_none(text: str) -> None:
    kind, trace = "", None
    try:
        trace = parse_trace("fuzzed", text)
    except ConfigError as error:
        kind = error.kind
    if trace is None:
        assert kind == "trace"
    else:
        assert trace.hours > 0.0
        assert trace.counts.min() >= 0


@given(_GOOD)
def test_no_tick_counts_more_nodes_than_there_are(events: list[tuple[int, str, str]]) -> None:
    try:
        trace = parse_trace("events", "\n".join(f"{at},{event},{node}" for at, event, node in events))
    except ConfigError:
        assert len({at for at, _, _ in events}) < 2
    else:
        assert trace.counts.max() <= 3
        assert trace.hours >= (max(events)[0] - min(events)[0]) / 3_600_000 - 1e-9


def published(*parts: str) -> list[Path]:
    """Published traces, which are not part of this project: UNBROKEN_TRACES names the folder they are in."""
    folder = os.environ.get("UNBROKEN_TRACES")
    if not folder:
        pytest.skip("UNBROKEN_TRACES does not name a folder with published traces")
    return sorted(path for part in parts for path in Path(folder).glob(part))


def test_all_published_traces_are_read() -> None:
    files = published("skypilot-2022/*.json", "bamboo/*.csv", "bamboo/*.txt", "parcae/*.csv", "parcae/*.jsonl")
    assert files
    for path in files:
        if len(path.read_text().split()) == 1:
            with pytest.raises(ConfigError, match="single moment"):
                read_trace(path)
        else:
            assert read_trace(path).hours > 0.9
