"""Whose signals a rank receives, and whether its launcher starts it again."""

from __future__ import annotations

import pytest

from unbroken.link.messages import SOCKET_VARIABLE
from unbroken.training.launcher import Launcher

AGENT = {SOCKET_VARIABLE: "/tmp/agent.sock"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "7", "TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_RESTART_COUNT": "0"}


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, Launcher(signals=False, restarts=False)),
        (AGENT, Launcher(signals=False, restarts=False)),
        # Without an agent around torchrun, a SIGTERM may be the machine's, passed on.
        (TORCHRUN | {"TORCHELASTIC_MAX_RESTARTS": "3"}, Launcher(signals=False, restarts=False)),
        (AGENT | TORCHRUN, Launcher(signals=True, restarts=False)),
        (AGENT | TORCHRUN | {"TORCHELASTIC_MAX_RESTARTS": "3"}, Launcher(signals=True, restarts=True)),
        # The last one allowed is not started again.
        (
            AGENT | TORCHRUN | {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": "3"},
            Launcher(signals=True, restarts=False),
        ),
        (AGENT | {"TORCHELASTIC_RUN_ID": "7"}, Launcher(signals=True, restarts=False)),
    ],
)  # fmt: skip
def test_launcher_is_what_the_environment_says(environment: dict[str, str], launcher: Launcher) -> None:
    assert Launcher.here(environment) == launcher
