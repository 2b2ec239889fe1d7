"""What a trainer that says hello is answered: which attempt it is, after the one before it is brought to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from unbroken.agent.attempt_writer import AttemptWriter
from unbroken.agent.claims import Claim, Claims
from unbroken.agent.events import Trouble
from unbroken.agent.local_ranks import LocalRanks
from unbroken.agent.outcome import may_pass
from unbroken.agent.rank_attempt_writer import RankAttemptWriter
from unbroken.agent.uploader import Uploader
from unbroken.clock import Clock, format_duration
from unbroken.errors import ConfigError, FencedError, StoreError, UnbrokenError
from unbroken.journal import Lease
from unbroken.journal.events import AttemptEnded
from unbroken.link.messages import Hello, Refused

_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 15.0


@dataclass(frozen=True)
class Admitting:
    """A trainer that will be welcomed."""

    writer: AttemptWriter | RankAttemptWriter
    """For what it stages."""
    first: bool
    """Whether the attempt begins with it."""


class Admission:
    """Not safe for several threads at once, but for :meth:`hurry`.

    Args:
        claims: gives out the attempts.
        uploader: of what trainers left in memory.
        say: told of what a trainer waits for.
        patience: for how many seconds a store that fails is asked again.
        upload_patience: for how many seconds a new attempt waits until the states of the one before are durable.
    """

    def __init__(
        self,
        claims: Claims,
        uploader: Uploader,
        say: Callable[[Trouble], None],
        clock: Clock,
        *,
        patience: float,
        upload_patience: float,
    ) -> None:
        self._claims = claims
        self._uploader = uploader
        self._say = say
        self._clock = clock
        self._patience = patience
        self._upload_patience = upload_patience
        self._ranks: LocalRanks | None = None
        """Of the current attempt, where it has several ranks."""
        self._hurry = threading.Event()

    def hurry(self) -> None:
        """Do not wait for a store that fails any more."""
        self._hurry.set()

    def answer(
        self, hello: Hello, vacant: Callable[[int], bool], last_words: Callable[[], AttemptEnded | None]
    ) -> Admitting | Refused:
        """Find, begin or adopt the attempt of a trainer.

        Args:
            vacant: whether the trainers of this attempt are gone; raises where this one is one too many.
            last_words: about the current attempt, where this one ends it; None where others write them.
        """
        try:
            self._claims.check(hello)
            first = not self._goes_on(hello, vacant)
            if first:
                claim = self._begin(hello, last_words)
                self._ranks = LocalRanks(claim, hello.world_size, self._clock) if hello.world_size > 1 else None
                self._uploader.begin()
            return Admitting(self._writer(hello), first)
        except UnbrokenError as error:
            return Refused(type(error).__name__, error.message, error.kind, error.hint)

    def _goes_on(self, hello: Hello, vacant: Callable[[int], bool]) -> bool:
        """Whether the trainer belongs to the current attempt.

        Raises:
            ConfigError: it can belong to none, or there is one too many of its rank.
        """
        if hello.world_size > 1:
            _demand_place(hello)
        if self._claims.current is None:
            return False
        lease = self._claims.current.lease
        same = (hello.attempt, hello.claim) == (lease.attempt, lease.claim)
        if hello.attempt and not same:
            return False
        left = vacant(lease.attempt)
        # A rank 0 of several that comes without an attempt begins one: others of the one before may still be dying.
        joins = same if hello.world_size > 1 else not left
        world_size = self._ranks.world_size if self._ranks else 1
        if (joins or same) and hello.world_size != world_size:
            raise ConfigError(
                f"process {hello.pid} opens {hello.uri} as one of {hello.world_size} ranks, and attempt "
                f"{lease.attempt} has {world_size}",
                kind="world-size", hint="Start one training below each unbroken run",
            )  # fmt: skip
        return joins

    def _writer(self, hello: Hello) -> AttemptWriter | RankAttemptWriter:
        current = self._claims.current
        if current is None:
            raise UnbrokenError("no attempt was given out", kind="closed")
        if self._ranks is None:
            return AttemptWriter(current, self._clock)
        self._ranks.join(hello.rank)
        return RankAttemptWriter(self._ranks, hello.rank, self._clock)

    def _begin(self, hello: Hello, last_words: Callable[[], AttemptEnded | None]) -> Claim:
        before, pause = self._claims.current, _RETRY_SECONDS
        deadline = self._clock.monotonic() + self._patience
        while True:
            try:
                if hello.attempt:
                    self._claims.demand(hello)  # a trainer that was left behind disturbs nobody
                if before is not None:
                    if hello.attempt and before.lease != Lease(hello.attempt, hello.claim):
                        self._uploader.abandon("another attempt has begun")  # nothing of it can be committed any more
                    self._rescue()
                    if not hello.attempt:  # else it is replaced already
                        self._end(before, last_words())
                    before = None
                return self._claims.begin(hello)
            except StoreError as error:
                left = deadline - self._clock.monotonic()
                if left <= 0 or not may_pass(type(error).__name__, error.kind) or self._hurry.is_set():
                    raise
                self._say(Trouble(f"no attempt yet, asking again for {format_duration(left)}: {error.message}"))
                if self._clock.wait(self._hurry, min(pause, left)):
                    raise
                pause = min(2 * pause, _LONGEST_RETRY_SECONDS)

    def _end(self, before: Claim, words: AttemptEnded | None) -> None:
        """Write the end of the attempt before, if that is for us to do."""
        if words is None:
            return
        try:
            before.append(words)
        except FencedError:
            if self._ranks is None:
                raise
            # Rank 0 was on another node meanwhile, whose agent has begun an attempt.

    def _rescue(self) -> None:
        """Wait until what the last attempt left in memory is durable: another attempt would fence it."""
        if left := self._uploader.left():
            self._say(Trouble(f"{describe_rescue(left[-1])}; the next trainer waits"))
            if not self._uploader.drain(self._upload_patience):
                self._uploader.abandon("the time is up")


def _demand_place(hello: Hello) -> None:
    """Refuse a rank that cannot be.

    Raises:
        ConfigError: it is none of its world, or comes without the attempt that rank 0 was given.
    """
    if not 0 <= hello.rank < hello.world_size:
        raise ConfigError(f"process {hello.pid} calls itself rank {hello.rank} of {hello.world_size}", kind="rank")
    if hello.rank and not hello.attempt:
        raise ConfigError(
            f"rank {hello.rank} of {hello.world_size} (process {hello.pid}) comes without the attempt that rank 0 was "
            "given",
            kind="no-attempt",
        )


def describe_rescue(step: int) -> str:
    """What is said while the agent does what the trainer cannot do any more."""
    return f"the trainer is gone: making step {step}, which it left in memory, durable"
