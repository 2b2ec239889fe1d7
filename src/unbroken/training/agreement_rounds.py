"""Which round is open, who has answered it, and what comes of it: rank 0's part of the agreement, pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from unbroken.training.agreement_gate import STOP
from unbroken.training.agreement_messages import Ended, Opened


@dataclass
class _Open:
    number: int
    kind: str
    data: dict[str, Any]
    due: float
    answers: dict[int, int] = field(default_factory=dict)


class Rounds:
    """One round at a time, numbered from 1. Each method returns what is to be sent to all ranks, in this order.

    Stops go before saves that wait, and stops that meet become one: after a round for a stop there is no other. A rank
    that has left counts with its last step, for who is behind it must come to where it is.

    Args:
        world_size: how many ranks there are.
        answer_seconds: how long a round waits for answers.
    """

    def __init__(self, world_size: int, *, answer_seconds: float) -> None:
        self._world = range(world_size)
        self._answer_seconds = answer_seconds
        self._number = 0
        self._open: _Open | None = None
        self._saves: deque[dict[str, Any]] = deque()
        self._stop: dict[str, Any] | None = None
        self._stopping = False
        self.left: dict[int, int] = {}
        """The last step of each rank that has left."""

    @property
    def due(self) -> float:
        """When :meth:`pass_time` has something to do, on the caller's clock; infinity where nothing is open."""
        return self._open.due if self._open else math.inf

    @property
    def present(self) -> list[int]:
        """The ranks that have not left."""
        return [rank for rank in self._world if rank not in self.left]

    def propose(self, kind: str, data: dict[str, Any], now: float) -> list[Opened | Ended]:
        """A rank wants a round."""
        if self._stopping:
            return []
        if kind != STOP:
            self._saves.append(data)
        elif self._open and self._open.kind == STOP:
            self._open.data = earlier(self._open.data, data)
        else:
            self._stop = earlier(self._stop, data) if self._stop is not None else data
        return self._advance(now)

    def answer(self, number: int, rank: int, step: int, now: float) -> list[Opened | Ended]:
        """A rank has answered; an answer to a round that has ended says nothing."""
        if self._open and self._open.number == number:
            self._open.answers[rank] = step
        return self._advance(now)

    def leave(self, rank: int, step: int, now: float) -> list[Opened | Ended]:
        """A rank has left after ``step``."""
        self.left[rank] = step
        return self._advance(now)

    def pass_time(self, now: float) -> list[Opened | Ended]:
        """It is ``now``: end a round that has waited long enough."""
        if not self._open or now < self._open.due:
            return []
        missing = tuple(rank for rank in self.present if rank not in self._open.answers)
        return [self._end(None, missing), *self._advance(now)]

    def _advance(self, now: float) -> list[Opened | Ended]:
        sent: list[Opened | Ended] = []
        while True:
            if self._open is None:
                opened = self._next(now)
                if opened is None:
                    return sent
                sent.append(opened)
            if self._open is None or not self._open.answers.keys() >= set(self.present):
                return sent
            steps = [*self._open.answers.values(), *self.left.values()]
            sent.append(self._end(max(steps, default=None), ()))

    def _next(self, now: float) -> Opened | None:
        if self._stopping or not self.present:
            return None
        if self._stop is not None:
            kind, data, self._stop = STOP, self._stop, None
        elif self._saves:
            kind, data = "save", self._saves.popleft()
        else:
            return None
        self._number += 1
        self._open = _Open(self._number, kind, data, now + self._answer_seconds)
        return Opened(self._number, kind, data)

    def _end(self, step: int | None, missing: tuple[int, ...]) -> Ended:
        assert self._open is not None  # noqa: S101 - said to the type checker
        done, self._open = self._open, None
        if done.kind == STOP:
            self._stopping = True
        return Ended(done.number, done.kind, step, done.data, missing)


def earlier(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of two stops the one that must be done first, by the wall-clock moment in ``until``; none is the latest."""
    return other if _until(other) < _until(one) else one


def _until(data: dict[str, Any]) -> float:
    until = data.get("until")
    return math.inf if until is None else float(until)
