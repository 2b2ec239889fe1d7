"""Attempts of one start of the command: claims them, or adopts one, as trainers ask for it."""

from __future__ import annotations

from dataclasses import dataclass

from unbroken.clock import Clock
from unbroken.errors import ConfigError, FencedError, UnbrokenError
from unbroken.journal import Event, Journal, Lease, Origin
from unbroken.journal.events import AttemptEnded
from unbroken.journal.state import NO_PROGRESS, RunState
from unbroken.link.messages import PROTOCOL, Hello
from unbroken.store import open_store

VISIBLE_SECONDS = 10.0
"""For how long the claim of an attempt is looked for that rank 0 says it was given."""
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Claim:
    """An attempt that this agent may write for."""

    uri: str
    journal: Journal
    lease: Lease
    origin: Origin

    def append(self, event: Event) -> None:
        """Write to the journal in the attempt's name; raises as :meth:`unbroken.journal.Journal.append` does."""
        self.journal.append(event, self.origin, self.lease)


class Claims:
    """Opens runs and claims their attempts. Not safe for several threads at once.

    Args:
        origin: where this agent runs, for the journal.
        command: what is supervised, for the journal.
        no_progress_limit: attempts in a row without progress after which none is given out.
    """

    def __init__(
        self,
        origin: Origin,
        command: list[str],
        no_progress_limit: int,
        clock: Clock,
    ) -> None:
        self._origin = origin
        self._command = command
        self._limit = no_progress_limit
        self._clock = clock
        self._closed = False
        self.current: Claim | None = None
        self.attempts: list[int] = []
        """Numbers of the attempts given out so far."""

    def close(self) -> None:
        """Claim nothing from now on, not even for whoever is in the middle of :meth:`begin`. Safe from any thread."""
        self._closed = True

    def check(self, hello: Hello) -> None:
        """Refuse what can never be admitted.

        Raises:
            ConfigError: another protocol, or a second run by the same command.
        """
        if hello.protocol != PROTOCOL:
            raise ConfigError(
                f"the trainer speaks version {hello.protocol} of the link, the agent version {PROTOCOL}",
                kind="protocol",
                hint="Use the same version of unbroken for the command and in the script's environment",
            )
        if self.current is not None and hello.uri != self.current.uri:
            raise ConfigError(
                f"the command trains {self.current.uri} and now asks for {hello.uri}",
                kind="second-run",
                hint="Give each run a command of its own",
            )

    def demand(self, hello: Hello) -> Journal:
        """The run's journal, which says that the attempt of the trainer owns the run. Changes nothing.

        Raises:
            FencedError: it was replaced, or was never claimed.
        """
        journal = self.current.journal if self.current else self._open(hello.uri)
        _demand_ownership(journal, Lease(hello.attempt, hello.claim), self._clock)
        return journal

    def begin(self, hello: Hello) -> Claim:
        """Claim the run's next attempt, or adopt the one that the trainer already has.

        Raises:
            FencedError: the attempt to adopt was replaced, or was never claimed.
            UnbrokenError: kind ``stopped-no-progress``: too many attempts before this one committed nothing; kind
                ``closed``: the start is over.
        """
        if hello.attempt:
            lease, journal = Lease(hello.attempt, hello.claim), self.demand(hello)
        else:
            journal = self.current.journal if self.current else self._open(hello.uri)
            lease = journal.claim(self._origin, command=self._command, unless=self._demand_open)
        claim = self.current = Claim(hello.uri, journal, lease, self._origin)
        self.attempts.append(lease.attempt)
        if not hello.attempt:
            self._demand_progress(claim)
        return claim

    def _demand_open(self, _: RunState) -> None:
        if self._closed:
            raise UnbrokenError("the command that wanted an attempt is gone", kind="closed")

    def _open(self, uri: str) -> Journal:
        return Journal.create(open_store(uri, create=True), clock=self._clock)

    def _demand_progress(self, claim: Claim) -> None:
        before = claim.journal.state.attempts_without_progress() - 1
        if before < self._limit:
            return
        text = f"stopped: the {before} attempts before this one committed no checkpoint"
        claim.append(AttemptEnded(NO_PROGRESS, -1, text))
        raise UnbrokenError(text, kind=NO_PROGRESS, hint="Mend the cause and start again; counting begins anew")


def _demand_ownership(journal: Journal, lease: Lease, clock: Clock) -> None:
    deadline = clock.monotonic() + VISIBLE_SECONDS
    while True:
        journal.refresh()
        owner = journal.state.owner
        if owner is not None and (owner.attempt, owner.claim) == (lease.attempt, lease.claim):
            return
        if owner is not None and owner.attempt >= lease.attempt:
            raise FencedError(
                f"attempt {lease.attempt} was replaced by attempt {owner.attempt} on {owner.origin.host}",
                kind="fenced",
            )
        if clock.monotonic() >= deadline:
            raise FencedError(f"attempt {lease.attempt} of {journal.store.uri} has no claim", kind="no-claim")
        clock.sleep(_LOOK_SECONDS)
