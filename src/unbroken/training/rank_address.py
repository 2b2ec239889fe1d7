"""Under which address the other ranks reach this machine."""

from __future__ import annotations

import os
import socket
from typing import Any

_ANY_PORT = 9  # a datagram socket is "connected" without a packet; the number does not matter


def own_address(default_store: Any) -> str:
    """A host name or address of this machine by which the other ranks can reach it.

    That is ``MASTER_ADDR`` where it is this machine: by torch's contract it is rank 0's, and everybody can resolve it.
    It is not always so (after an elastic restart rank 0 may be elsewhere; a service address forwards one port alone):
    then it is the address that this machine has on its way to ``MASTER_ADDR``, or to the host of the default process
    group's store. Where there is neither, all ranks are on one machine: ``127.0.0.1``.

    Args:
        default_store: the store of the default process group.
    """
    for host in (os.environ.get("MASTER_ADDR", ""), _host_of(default_store)):
        if host and _is_here(host):
            return host
        if host and (address := _address_towards(host)):
            return address
    return "127.0.0.1"


def _host_of(store: Any) -> str:
    """The host of the TCPStore below any number of prefixes, or ""."""
    while (below := getattr(store, "underlying_store", None)) is not None:
        store = below
    return str(getattr(store, "host", "") or "")


def _is_here(host: str) -> bool:
    """Only an address of this machine can be bound."""
    for family, kind, protocol, _, address in _resolved(host):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind((address[0], 0, *address[2:]))
            except OSError:
                continue
            return True
    return False


def _address_towards(host: str) -> str:
    for family, kind, protocol, _, address in _resolved(host):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(address)
            except OSError:
                continue
            return str(probe.getsockname()[0])
    return ""


def _resolved(host: str) -> list[tuple[Any, ...]]:
    try:
        return list(socket.getaddrinfo(host.strip("[]"), _ANY_PORT, type=socket.SOCK_DGRAM))
    except OSError:
        return []
