"""The ranks of one attempt that this agent serves, and what each of them has announced."""

from __future__ import annotations

import threading

from unbroken.agent.claims import Claim
from unbroken.clock import Clock


class LocalRanks:
    """Of one attempt of several ranks. All methods are safe from any thread.

    Args:
        world_size: ranks of the attempt, on all nodes together.
    """

    def __init__(self, claim: Claim, world_size: int, clock: Clock) -> None:
        self.claim = claim
        self.world_size = world_size
        self._clock = clock
        self._lock = threading.Lock()
        self._here: set[int] = set()
        self._gone: set[int] = set()
        self._left_at = 0.0
        """When a trainer left last, in monotonic seconds."""
        self._announced: dict[int, set[int]] = {}
        self._failed: dict[int, str] = {}
        """Steps that cannot become checkpoints any more, and why."""

    def join(self, rank: int) -> None:
        """A trainer of this rank was welcomed."""
        with self._lock:
            self._here.add(rank)
            self._gone.discard(rank)

    def part(self, rank: int) -> None:
        """The trainer of this rank is gone."""
        with self._lock:
            self._gone.add(rank)
            self._left_at = self._clock.monotonic()

    @property
    def here(self) -> frozenset[int]:
        """The ranks that were welcomed, also those that are gone."""
        with self._lock:
            return frozenset(self._here)

    @property
    def leads(self) -> bool:
        """Whether rank 0 is served here: then this agent commits first, and writes the end of the attempt."""
        return 0 in self.here

    @property
    def turn(self) -> int:
        """When it is for this agent to commit in the place of that of rank 0: 1 for the next node, 2 for the two after
        it, 3 for the four after these."""
        here = self.here
        return max(1, min(here) // len(here)).bit_length() if here else 1

    @property
    def whole(self) -> bool:
        """Whether all ranks of the attempt are served here: then nobody else has to be asked for anything."""
        return len(self.here) == self.world_size

    def deserted_for(self) -> float:
        """For how many seconds all trainers have been gone; 0 while one is left."""
        with self._lock:
            return self._clock.monotonic() - self._left_at if self._here <= self._gone else 0.0

    def announce(self, rank: int, step: int) -> None:
        """A trainer wants this step to be durable; where it has wanted it before, all begin anew with it."""
        with self._lock:
            announced = self._announced.setdefault(step, set())
            if rank in announced:
                announced.clear()
                self._failed.pop(step, None)
            announced.add(rank)

    def fail(self, step: int, reason: str) -> None:
        """What a rank announced is given up: the step has no common state any more."""
        with self._lock:
            self._failed.setdefault(step, reason)

    def forget(self, until: int) -> None:
        """Steps up to this one are dealt with."""
        with self._lock:
            for step in [step for step in self._announced if step <= until]:
                del self._announced[step]
            for step in [step for step in self._failed if step < until]:
                del self._failed[step]

    def hopeless(self, step: int) -> str:
        """Why a step that some rank announced cannot become a checkpoint, as far as is known here; "" where it can."""
        with self._lock:
            if step in self._failed:
                return self._failed[step]
            silent = (self._here & self._gone) - self._announced.get(step, set())
        return f"the trainer of rank {min(silent)} ended before it staged the step" if silent else ""
