"""What the journal says about a start of the command when it is over."""

from __future__ import annotations

from dataclasses import dataclass

from unbroken.agent.claims import Claim
from unbroken.clock import Clock
from unbroken.errors import StoreError

_RETRY_SECONDS = 1.0
_FINISH_SECONDS = 10.0
"""For how long the end of the training is looked for that ranks say they have reached."""
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class JournalFacts:
    """What the journal says when a start is over."""

    finished_step: int = -1
    finished_here: bool = False
    """Whether the newest attempt of this start wrote that the run is complete."""
    durable_step: int = -1
    committed: bool = False
    fenced: bool = False
    without_progress: int = 0


def ask_journal(claim: Claim, attempts: list[int], patience: float, clock: Clock, *, awaited: int = -1) -> JournalFacts:
    """Read on, and return the facts; a store that fails is asked again for ``patience`` seconds.

    Args:
        attempts: of this start.
        awaited: the step at which somebody else is about to write that the run is finished; that is waited for, for a
            few seconds. -1: none.
    """
    deadline = clock.monotonic() + patience
    finish_by = clock.monotonic() + min(patience, _FINISH_SECONDS)
    while True:
        try:
            claim.journal.refresh()
            facts = known_facts(claim, attempts)
            if facts.finished_step >= awaited or facts.fenced or clock.monotonic() >= finish_by:
                return facts
            clock.sleep(_LOOK_SECONDS)
        except StoreError:
            if clock.monotonic() + _RETRY_SECONDS > deadline:
                raise
            clock.sleep(_RETRY_SECONDS)


def known_facts(claim: Claim, attempts: list[int]) -> JournalFacts:
    """The facts by what was read of the journal so far."""
    state = claim.journal.state
    mine = [state.attempts[n] for n in attempts if n in state.attempts]
    return JournalFacts(
        finished_step=-1 if state.finished_step is None else state.finished_step,
        finished_here=state.finished_by == claim.lease.attempt,
        durable_step=state.checkpoints[-1].step if state.checkpoints else -1,
        committed=any(record.committed for record in mine),
        fenced=state.fences(claim.lease.attempt, claim.lease.claim),
        without_progress=state.attempts_without_progress(),
    )
