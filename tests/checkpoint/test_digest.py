"""Digests of tensor bytes."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.checkpoint.digest import CHUNK, DigestsOnTheWay, agree, chunk_count, chunk_digests, digest


def test_digests_are_the_canonical_ones_of_xxh3_128() -> None:
    # Published by the reference implementation for no bytes and seed 0, most significant byte first.
    assert digest(b"") == "99aa06d3014798d86001c324468d497f"


def test_a_chunk_has_16_mib() -> None:
    assert CHUNK == 16 * 1024 * 1024


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_each_chunk_has_its_own_digest(over: int) -> None:
    data = bytearray(CHUNK + over)
    before = chunk_digests(data)
    assert len(before) == chunk_count(len(data)) == (2 if over > 0 else 1)
    data[-1] ^= 1
    after = chunk_digests(data)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True] * (len(before) - 1) + [False]


def test_no_bytes_have_no_digest() -> None:
    assert chunk_digests(b"") == []
    assert chunk_count(0) == 0


@given(
    sizes=st.lists(st.integers(0, 40), max_size=6),
    pieces=st.lists(st.integers(0, 50), max_size=20),
    skip=st.integers(0, 20),
    taken=st.integers(0, 6),
)
def test_digests_on_the_way_are_those_of_the_chunks_whatever_is_announced(
    sizes: list[int], pieces: list[int], skip: int, taken: int
) -> None:
    with mock.patch("unbroken.checkpoint.digest.CHUNK", 8):
        tensors = [bytes((number * 50 + i) % 256 for i in range(size)) for number, size in enumerate(sizes)]
        whole = [chunk_digests(data) for data in tensors]
        found = [known[:taken] for known in whole]
        on_the_way = DigestsOnTheWay(list(zip(tensors, found, strict=True)), skip=skip)
        for size in pieces:
            on_the_way.advance(size)
        on_the_way.finish()
    assert found == whole


def test_a_chunk_is_digested_when_it_is_announced_and_not_before() -> None:
    with mock.patch("unbroken.checkpoint.digest.CHUNK", 8):
        first: list[str] = []
        second: list[str] = []
        on_the_way = DigestsOnTheWay([(bytes(12), first), (bytes(3), second)], skip=5)
        seen = []
        for size in (5, 8, 4, 3):
            on_the_way.advance(size)
            seen.append((len(first), len(second)))
    assert seen == [(0, 0), (1, 0), (2, 0), (2, 1)]


def test_data_agrees_with_its_own_digests_and_the_first_difference_ends_the_comparison() -> None:
    data = bytearray(3 * CHUNK)
    known = chunk_digests(data)
    found: list[str] = []
    assert agree(data, known, found)
    assert found == known
    data[CHUNK + 5] ^= 1
    found = []
    assert not agree(data, known, found)
    assert found == chunk_digests(data)[:2]
    assert not agree(data[:CHUNK], known, [])
    assert agree(b"", [], [])
