"""By which address the others reach rank 0's machine."""

from __future__ import annotations

import pytest
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from unbroken.training import rank_address
from unbroken.training.rank_address import own_address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_the_master_address_is_taken_where_it_is_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", host)
    assert own_address(HashStore()) == host


def test_where_the_master_is_another_machine_it_is_the_address_on_the_way_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.7")  # of TEST-NET-1: nobody's
    monkeypatch.setattr(rank_address, "_address_towards", {"192.0.2.7": "10.1.2.3"}.__getitem__)
    assert own_address(HashStore()) == "10.1.2.3"


def test_the_way_to_an_address_of_this_machine_begins_at_it() -> None:
    assert rank_address._address_towards("127.0.0.1") == "127.0.0.1"


def test_without_a_master_address_it_is_that_of_the_process_groups_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    below = TCPStore("127.0.0.2", 0, is_master=True, wait_for_workers=False)
    assert own_address(PrefixStore("a", PrefixStore("b", below))) == "127.0.0.2"


@pytest.mark.parametrize("master", [None, "no-such-host.invalid"])
def test_where_nothing_is_known_all_are_on_this_machine(master: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if master is None:
        monkeypatch.delenv("MASTER_ADDR", raising=False)
    else:
        monkeypatch.setenv("MASTER_ADDR", master)
    monkeypatch.setattr(rank_address, "_resolved", lambda host: [])
    assert own_address(HashStore()) == "127.0.0.1"
