"""Copies that come with the digest of what arrived."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from unbroken.checkpoint.copying import copy_checked
from unbroken.checkpoint.digest import digest

SIZES = [0, 1, 262_143, 262_144, 262_145, 1_000_003]


@pytest.mark.parametrize("kind", [bytearray, bytes], ids=["writable", "read-only"])
@pytest.mark.parametrize("size", SIZES)
def test_every_byte_arrives_and_the_digest_is_the_format_s(size: int, kind: Callable[[bytes], bytes]) -> None:
    data = random.Random(size).randbytes(size)
    target = bytearray(size + 2)
    assert copy_checked(memoryview(target)[1:-1], memoryview(kind(data))) == digest(data)
    assert target == b"\0" + data + b"\0"


@pytest.mark.parametrize("size", [0, 9, 11])
def test_memory_of_another_size_is_refused_untouched(size: int) -> None:
    target = bytearray(size)
    with pytest.raises(ValueError, match=f"10 bytes do not fit into {size}"):
        copy_checked(memoryview(target), memoryview(bytearray(b"x" * 10)))
    assert target == bytes(size)
