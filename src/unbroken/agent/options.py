"""What can be set about an agent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unbroken.notice.grace import DEFAULT_GRACE


@dataclass(frozen=True)
class AgentOptions:
    """Settings of an agent. All times are in seconds."""

    uri: str = ""
    """Run URI that outranks the one in the script, or "" to take the script's."""
    every: str = ""
    """Save cadence that outranks the one in the script, or ""."""
    keep: str = ""
    """Which checkpoints to keep, as a text that outranks the script's, or ""."""
    grace: float = DEFAULT_GRACE
    """From a stop signal to the kill."""
    no_progress_limit: int = 5
    """Attempts in a row without a committed checkpoint after which the agent stops."""
    max_restarts: int = 100
    """Restarts in place by one agent."""
    pool: str = ""
    """Where this machine comes from (instance type, zone, market), for the journal."""
    price: float | None = None
    """What this machine costs an hour, in ``currency``."""
    currency: str = ""
    runtime_dir: Path | None = None
    """Folder for the socket and ``agent.json``; None for a temporary one."""
    first_backoff: float = 1.0
    """Wait before the first restart; it doubles from one restart to the next that made no progress."""
    longest_backoff: float = 60.0
    store_patience_at_start: float = 300.0
    """For how long a store that fails is asked again while a trainer waits for its attempt; a notice ends the wait."""
    store_patience: float = 60.0
    """For how long a store that does not answer is asked again when the command has ended."""
    upload_patience: float = 1800.0
    """For how long what a trainer left in memory is waited for until it is durable; a notice's deadline ends it
    sooner."""
    upload_nice: int = 2
    """How much the training's threads go before those that upload, 0 to 19, while no interruption is coming."""
    leftover_grace: float = 5.0
    """Between SIGTERM and SIGKILL for processes that the command left behind."""
    hello_patience: float = 30.0
    """For how long a detached agent waits for its trainer's first word."""
