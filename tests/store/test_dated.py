from __future__ import annotations

import time

import pytest

from unbroken.errors import NotFoundError
from unbroken.store import Dated, open_store

_SAME_MACHINE = 5.0  # seconds between clocks that are one


def test_a_store_says_when_an_object_was_written(store_uri: str) -> None:
    store = open_store(store_uri, create=True)
    assert isinstance(store, Dated)
    before = time.time()
    store.put("there", [b"x"])
    assert before - _SAME_MACHINE <= store.written_at("there") <= time.time() + _SAME_MACHINE
    with pytest.raises(NotFoundError):
        store.written_at("missing")
