"""Digests of tensor bytes."""

from __future__ import annotations

import pytest

from unbroken.checkpoint.digest import CHUNK, chunk_count, chunk_digests, digest


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
