"""An attempt that this process claims itself, through the journal, where no agent stands by."""

from __future__ import annotations

import logging
import os
import socket
import sys

from unbroken.clock import Clock
from unbroken.errors import FencedError, StoreError, UnbrokenError
from unbroken.journal import Journal, Lease, Origin
from unbroken.journal.events import AttemptEnded
from unbroken.link.messages import Bye, FromTrainer
from unbroken.store import open_store
from unbroken.training.agent_link import ReturnedSlot, StopRequest

_log = logging.getLogger("unbroken")


class SoloLink:
    """A :class:`~unbroken.training.attempt.Link` without an agent: nobody announces interruptions, and the process
    journals its own end, if it comes to it.

    Args:
        uri: of the run; it is made where it is new.
        clock: for the journal.
    """

    def __init__(self, uri: str, *, clock: Clock) -> None:
        self.uri = uri
        self._clock = clock
        self._origin = Origin(host=socket.gethostname(), pid=os.getpid())
        self._journal: Journal | None = None
        self.attempt = 0
        self.claim = ""
        self.stop: StopRequest | None = None
        self.advised = False
        self.returned: list[ReturnedSlot] = []

    def join(self, attempt: int, claim: str) -> None:
        """Let :meth:`open` become part of an attempt that another process has claimed."""
        self.attempt, self.claim = attempt, claim

    def open(self) -> None:
        """Claim the run's next attempt, unless :meth:`join` has named one.

        Raises:
            UnbrokenError: the run cannot be opened for writing.
        """
        self._journal = Journal.create(open_store(self.uri, create=True), clock=self._clock)
        if self.attempt:
            return
        lease = self._journal.claim(self._origin, command=list(sys.argv))
        self.attempt, self.claim = lease.attempt, lease.claim

    def open_journal(self) -> Journal:
        """The journal with which :meth:`open` claimed.

        Raises:
            StoreError: it has not.
        """
        if self._journal is None:
            raise StoreError(f"no attempt of {self.uri} was claimed", kind="no-claim")
        return self._journal

    def send(self, message: FromTrainer) -> None:
        """Nobody listens."""

    def close(self, bye: Bye) -> None:
        """Journal how the attempt ended."""
        if self._journal is None or not self.attempt:
            return
        detail = f"{bye.error}: {bye.message}" if bye.error else bye.message
        try:
            self._journal.append(
                AttemptEnded(bye.outcome, bye.step, detail), self._origin, Lease(self.attempt, self.claim)
            )
        except FencedError:
            pass  # the attempt that replaced this one has said so
        except UnbrokenError as error:
            _log.warning("unbroken: the end of the attempt could not be journalled: %s", error)
