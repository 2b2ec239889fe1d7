"""What an attempt needs of whoever claimed it: an agent, or this process itself."""

from __future__ import annotations

from typing import Protocol

from unbroken.journal import Journal
from unbroken.link.messages import Bye, FromTrainer
from unbroken.training.agent_link import ReturnedSlot, StopRequest


class Link(Protocol):
    """An attempt of a run that is claimed here."""

    attempt: int
    claim: str
    uri: str
    stop: StopRequest | None
    """Set, from another thread, when the machine will be taken."""
    returned: list[ReturnedSlot]
    """Memory that an earlier trainer on this node has left; whoever takes slots from it owns them."""
    advised: bool
    """Set when an interruption became likely; whoever acts on it clears it."""

    def join(self, attempt: int, claim: str) -> None:
        """Let :meth:`open` become part of an attempt that another rank has claimed."""

    def open(self) -> None:
        """Become an attempt of the run; raises an UnbrokenError where that fails."""

    def open_journal(self) -> Journal:
        """The run's journal, for writing with the claimed attempt."""

    def send(self, message: FromTrainer) -> None:
        """Tell what happened; never raises."""

    def close(self, bye: Bye) -> None:
        """Say how the attempt ended; never raises."""
