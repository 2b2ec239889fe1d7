"""One training command as several nodes of several ranks under torchrun, all on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unbroken.engine.gang import Node
from unbroken.errors import ConfigError
from unbroken.job.torchrun import split_training, under_torchrun

MOST_NODES = 150
_FIRST_ADDRESS = 100
"""Each node has an address of its own, from 127.0.0.100 on: torchrun numbers the nodes in the order of the addresses,
compared as text."""

_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
"""What ranks that share a machine need, where nobody said otherwise."""


@dataclass(frozen=True)
class Layout:
    """How many nodes a training has, and how many ranks each of them."""

    nodes: int = 1
    ranks_per_node: int = 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def check(self, command: Sequence[str]) -> None:
        """Say now, and not at the start, that a command cannot be laid out.

        Raises:
            ConfigError: several ranks are wanted of what is not ``python SCRIPT ...`` or ``python -m MODULE ...``, or
                of what starts ranks itself (kind ``command``); or there are more nodes than addresses (kind ``nodes``).
        """
        if self.nodes > MOST_NODES:
            raise ConfigError(f"{self.nodes} nodes are more than {MOST_NODES}", kind="nodes")
        if self.ranks > 1:
            split_training(command)

    def lay_out(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> list[Node]:
        """The nodes of one start. One rank is the command as it is; several are started by torchrun, with a free port
        of this machine as their rendezvous.

        Args:
            command: as a user types it: ``python train.py ...``.
            environments: one for each node, added to this process's own.

        Raises:
            ConfigError: as :meth:`check`.
        """
        self.check(command)
        if self.ranks == 1:
            return [Node(command, environments[0])]
        port = _free_port()
        defaults = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
        return [
            Node(under_torchrun(command, self._options(index, port)), {**defaults, **environment})
            for index, environment in enumerate(environments)
        ]

    def _options(self, index: int, port: int) -> list[str]:
        # The c10d rendezvous, for agents start their part again in place, each in its own time: the static one takes a
        # new torchrun in while the store of the old ones still stands, and its ranks wait half an hour for dead ones.
        return [
            f"--nnodes={self.nodes}", f"--nproc-per-node={self.ranks_per_node}",
            "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-id={port}",
            f"--rdzv-conf=is_host={int(index == 0)}", f"--local-addr=127.0.0.{_FIRST_ADDRESS + index}",
        ]  # fmt: skip


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
