"""The gate that a rank's loop passes before each step, and where it learns what was agreed. No input or output."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from unbroken.clock import Clock
from unbroken.errors import UnbrokenError

SAVE, STOP = "save", "stop"


@dataclass(frozen=True)
class Outcome:
    """What this rank does now, at a boundary.

    Attributes:
        kind: ``"save"`` or ``"stop"``.
        step: the completed steps at this boundary.
        data: what was given to ``propose``; of stops that met, that with the earliest ``until``.
        agreed: all ranks do it after this very step. False (only of a stop): there was no agreement, each rank leaves
            at its own boundary, and a save of this step cannot be complete.
        missing: the ranks because of which there was none, where that is known.
    """

    kind: str
    step: int
    data: dict[str, Any]
    agreed: bool = True
    missing: tuple[int, ...] = ()


@dataclass
class _Round:
    number: int
    kind: str
    data: dict[str, Any]
    answered: int
    ended: bool = False
    result: int | None = None
    missing: tuple[int, ...] = field(default=())


_Decision = Outcome | None | Literal["wait"]


class Gate:
    """Holds the loop back where this rank has promised to begin no further step, until it is known what comes.

    The loop, before each step, with ``step`` completed ones::

        while True:
            gate.begun = step + 1
            if not gate.flag:
                break
            outcome = gate.enter(step)
            if outcome is None:
                break
            ...  # a save: take it and come round again; a stop: leave the loop
        ...      # now do step + 1

    The order of the first two lines is what makes it right: the loop writes ``begun`` and then reads ``flag``, the
    thread that opens a round writes ``flag`` and then reads ``begun``. So either the thread counts the new step as
    begun, or the loop sees the flag and comes to :meth:`enter`, where a lock settles it.

    A loop that has done its last step calls :meth:`finished` in place of all that.

    Args:
        step: the completed steps at the start.
        wait_seconds: how long the loop is held back at most, whatever happens.
    """

    def __init__(self, step: int, *, clock: Clock, wait_seconds: float) -> None:
        self.begun = step
        """The step that the loop works on, counted as completed steps after it. Only the loop writes it."""
        self.flag = False
        """True while the loop must come to :meth:`enter` at each boundary."""
        self.left_out = 0
        """How many rounds for a save ended without a result."""
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._changed = threading.Event()  # replaced by a new one each time it is set
        self._rounds: list[_Round] = []
        self._alone = False
        self._error: UnbrokenError | None = None
        self._over = False

    def enter(self, step: int) -> Outcome | None:
        """What to do at the boundary after ``step``; None: go on with the next step.

        Blocks where this rank answered a round with ``step`` and the result is not there yet: as long as the round
        may last, not for the others to come here.

        Raises:
            UnbrokenError: the agreement has ended with an error, and no stop is to be made.
        """
        due = self._clock.monotonic() + self._wait_seconds
        while True:
            decision, changed = self.look(step)
            if decision != "wait":
                return decision
            if not self._clock.wait(changed, due - self._clock.monotonic()) and self._clock.monotonic() >= due:
                self._give_up(step)

    def look(self, step: int) -> tuple[_Decision, threading.Event]:
        """:meth:`enter` without waiting: ``"wait"`` where it would, and the event to wait for."""
        with self._lock:
            decision = self._decide(step)
            # A loop that waits or acts at a boundary has not begun the next step.
            self.begun = step + 1 if decision is None else step
            self.flag = bool(self._rounds or (self._error and not self._over))
            return decision, self._changed

    def finished(self, step: int) -> None:
        """The loop has done its last step: it comes to no boundary any more, and rounds are answered with ``step``."""
        with self._lock:
            self.begun = step
            self._over = True
            self._rounds.clear()
            self.flag = False

    def open_round(self, number: int, kind: str, data: dict[str, Any]) -> int:
        """A round begins: returns the answer of this rank, and holds the loop back after that step."""
        with self._lock:
            self.flag = True  # first this, then the reading of begun: see the class
            answer = self.begun
            if self._over:
                self.flag = False
            else:
                self._rounds.append(_Round(number, kind, data, answer))
                self._wake()
            return answer

    def end_round(self, number: int, step: int | None, data: dict[str, Any], missing: tuple[int, ...] = ()) -> None:
        """The result of a round."""
        with self._lock:
            for each in self._rounds:
                if each.number == number and not each.ended:
                    each.ended, each.result, each.data, each.missing = True, step, data, missing
            self._wake()

    def stop_alone(self, data: dict[str, Any]) -> None:
        """A stop that nobody can be asked about: the loop leaves at its next boundary, without agreement."""
        with self._lock:
            if not self._over:
                self._rounds.insert(0, _Round(0, STOP, data, self.begun, ended=True))
                self.flag = True
            self._wake()

    def go_alone(self, error: UnbrokenError | None = None) -> None:
        """No results come from now on: what is open ends without one. With an error, :meth:`enter` raises it."""
        with self._lock:
            self._alone = True
            for each in self._rounds:
                each.ended = True
            self._error = self._error or error
            self.flag = not self._over and bool(self._rounds or self._error)
            self._wake()

    @property
    def alone(self) -> bool:
        """True when no results come any more."""
        return self._alone

    def _decide(self, step: int) -> _Decision:
        for each in list(self._rounds):
            if not each.ended:
                if each.answered <= step:
                    return "wait"
            elif each.result is None or each.result < step:  # the latter where this rank had given up waiting
                self._rounds.remove(each)
                if each.kind == STOP:
                    return Outcome(STOP, step, each.data, agreed=False, missing=each.missing)
                self.left_out += 1
            elif each.result == step:
                self._rounds.remove(each)
                return Outcome(each.kind, step, each.data)
        # With a stop agreed for a later step the loop tries to get there: what was lost may have saved it before.
        if self._error and not any(each.kind == STOP for each in self._rounds):
            raise self._error
        return None

    def _give_up(self, step: int) -> None:
        with self._lock:
            for each in self._rounds:
                if not each.ended and each.answered <= step:
                    each.ended = True

    def _wake(self) -> None:
        self._changed.set()
        self._changed = threading.Event()
