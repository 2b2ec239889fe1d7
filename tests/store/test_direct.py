"""Reading straight into the reader's memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from unbroken.errors import DamagedError, NotFoundError, StoreError
from unbroken.store import ReadsInto, open_store

DATA = bytes(i % 251 for i in range(10_000))


@pytest.fixture
def store(tmp_path: Path) -> ReadsInto:
    opened = open_store(str(tmp_path / "run"), create=True)
    opened.put("packs/a", [DATA])
    assert isinstance(opened, ReadsInto)
    return opened


def test_targets_are_filled_one_after_another(store: ReadsInto) -> None:
    targets = [bytearray(7), bytearray(0), bytearray(4000), bytearray(1)]
    store.read_into("packs/a", 13, [memoryview(target) for target in targets])
    assert b"".join(targets) == DATA[13 : 13 + 4008]


def test_more_targets_than_the_system_takes_at_once_are_filled(store: ReadsInto) -> None:
    target = bytearray(len(DATA))
    view = memoryview(target)
    store.read_into("packs/a", 0, [view[i : i + 3] for i in range(0, len(DATA), 3)])
    assert target == DATA


def test_reads_that_give_less_than_was_asked_for_go_on(store: ReadsInto, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def little(descriptor: int, targets: Sequence[Any], start: int) -> int:
        return real(descriptor, [targets[0][:5]], start)

    monkeypatch.setattr("unbroken.store.folder.os.preadv", little)
    target = bytearray(23)
    store.read_into("packs/a", 100, [memoryview(target)[:11], memoryview(target)[11:]])
    assert target == DATA[100:123]


def test_an_object_that_ends_early_is_damage(store: ReadsInto) -> None:
    with pytest.raises(DamagedError) as caught:
        store.read_into("packs/a", len(DATA) - 5, [memoryview(bytearray(3)), memoryview(bytearray(3))])
    assert caught.value.kind == "truncated"
    assert f"byte {len(DATA) + 1}" in caught.value.message


def test_a_missing_object_and_a_key_that_leads_out_are_refused(store: ReadsInto) -> None:
    with pytest.raises(NotFoundError) as caught:
        store.read_into("packs/b", 0, [memoryview(bytearray(3))])
    assert caught.value.kind == "object"
    with pytest.raises(StoreError):
        store.read_into("../a", 0, [memoryview(bytearray(3))])
