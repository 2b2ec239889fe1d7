"""What a trainer that says hello is answered: which attempt it is, after the one before it is brought to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from unbroken.agent.attempt_writer import AttemptWriter
from unbroken.agent.claims import Claim, Claims
from unbroken.agent.events import Trouble
from unbroken.agent.outcome import may_pass
from unbroken.agent.uploader import Uploader
from unbroken.clock import Clock, format_duration
from unbroken.errors import StoreError, UnbrokenError
from unbroken.journal.events import AttemptEnded
from unbroken.link.messages import Hello, Refused

_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 15.0


@dataclass(frozen=True)
class Admitting:
    """A trainer that will be welcomed."""

    writer: AttemptWriter
    """Of its attempt."""
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
        self._writer: AttemptWriter | None = None
        self._hurry = threading.Event()

    def hurry(self) -> None:
        """Do not wait for a store that fails any more."""
        self._hurry.set()

    def answer(
        self, hello: Hello, vacant: Callable[[], bool], last_words: Callable[[], AttemptEnded]
    ) -> Admitting | Refused:
        """Find, begin or adopt the attempt of a trainer.

        Args:
            vacant: whether the trainers of the current attempt are gone; raises where this one is one too many.
            last_words: about the current attempt, where this one ends it.
        """
        try:
            self._claims.check(hello)
            if vacant() or self._writer is None:
                claim = self._begin(hello, last_words)
                self._writer = AttemptWriter(claim, self._clock)
                self._uploader.begin()
                return Admitting(self._writer, first=True)
        except UnbrokenError as error:
            return Refused(type(error).__name__, error.message, error.kind, error.hint)
        return Admitting(self._writer, first=False)

    def _begin(self, hello: Hello, last_words: Callable[[], AttemptEnded]) -> Claim:
        before, pause = self._claims.current, _RETRY_SECONDS
        if before is not None:
            self._rescue()
        deadline = self._clock.monotonic() + self._patience
        while True:
            try:
                if before is not None:
                    before.append(last_words())
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

    def _rescue(self) -> None:
        """Wait until what the last attempt left in memory is durable: another attempt would fence it."""
        if left := self._uploader.left():
            self._say(Trouble(f"{describe_rescue(left[-1])}; the next trainer waits"))
            if not self._uploader.drain(self._upload_patience):
                self._uploader.abandon("the time is up")


def describe_rescue(step: int) -> str:
    """What is said while the agent does what the trainer cannot do any more."""
    return f"the trainer is gone: making step {step}, which it left in memory, durable"
