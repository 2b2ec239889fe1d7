"""The garbage collector rests while somebody is within, and afterwards is as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from unbroken.checkpoint.collector import collector_resting


@pytest.fixture(autouse=True)
def collector_as_before() -> Iterator[None]:
    was_on = gc.isenabled()
    yield
    (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("was_on", [True, False])
def test_it_rests_until_the_last_has_left(was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()
    with collector_resting:
        assert not gc.isenabled()
        with collector_resting:
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() == was_on


def test_an_error_wakes_it_too() -> None:
    gc.enable()
    with pytest.raises(KeyError), collector_resting:
        raise KeyError
    assert gc.isenabled()
