"""Where a run's time and money went: every microsecond from its first claim to its last entry has one cause.

The time is cut into spans that follow one another without a hole, in whole microseconds, so that the parts add up to
the whole exactly; money is a fraction of whole numbers for the same reason. docs/design/015-report.md defines causes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from fractions import Fraction

import msgspec

from unbroken.journal import AttemptRecord, Entry, RunState
from unbroken.report.timeline import restored_moments, restored_step

MICROS = 1_000_000
"""Microseconds in a second."""
_HOUR = 3600 * MICROS
_KEPT_MACHINE = frozenset({"crashed", "failed", "left"})
"""Ends after which the same agent may start the command again on the machine it has."""


class Cause(StrEnum):
    """What a span of time was spent on; :data:`CAUSE_TEXT` says it in words."""

    USEFUL = "useful"
    STALLS = "stalls"
    REPEATED = "repeated"
    RESTART = "restart"
    WAITING = "waiting"
    SILENT = "silent"
    UNDURABLE = "undurable"


CAUSE_TEXT = {
    Cause.USEFUL: "work that counts",
    Cause.STALLS: "standing still for saves",
    Cause.REPEATED: "work that had to be done again",
    Cause.RESTART: "leaving, starting, restoring",
    Cause.WAITING: "waiting between attempts",
    Cause.SILENT: "no word from the attempt",
    Cause.UNDURABLE: "training not known to be durable",
}


class Span(msgspec.Struct, frozen=True):
    """From ``begin`` to ``end``, both in whole microseconds since the epoch, for one cause.

    ``attempt`` is the one it belongs to; time before an attempt, since the one before it, belongs to neither and has 0.
    ``price`` is an hour's, None where nobody said it. Time that is not ``paid`` is not known to be.
    """

    attempt: int
    cause: Cause
    begin: int
    end: int
    paid: bool
    price: float | None = None
    currency: str = ""

    @property
    def micros(self) -> int:
        return self.end - self.begin

    @property
    def amount(self) -> Fraction:
        """What it cost, exactly; 0 where it is not paid or the price is not known."""
        if not self.paid or self.price is None:
            return Fraction(0)
        return Fraction(self.price) * self.micros / _HOUR


class CauseLine(msgspec.Struct, frozen=True):
    """All spans of one cause. Times in microseconds; ``amounts`` by currency, of what is paid at a known price."""

    cause: Cause
    micros: int
    paid: int
    amounts: dict[str, Fraction]


def spans_of(entries: Sequence[Entry], state: RunState) -> list[Span]:
    """Cut a run's time into spans, oldest first, from the first claim of a training to the last entry of one."""
    attempts = state.trainings
    if not attempts:
        return []
    restored_at = restored_moments(entries, state)
    pen = _Pen(_micros(attempts[0].claimed_at))
    for i, record in enumerate(attempts):
        if i:
            _draw_gap(pen, attempts[i - 1], record)
        later = [step for step in map(restored_step, attempts[i + 1 :]) if step >= 0]
        pen.take(record)
        _draw_attempt(pen, record, restored_at, min(later, default=None))
    return pen.spans


def by_cause(spans: Sequence[Span]) -> list[CauseLine]:
    """One line for each cause, also where it took no time, in the order of :class:`Cause`."""
    return [_sum(cause, [span for span in spans if span.cause is cause]) for cause in Cause]


def amounts_of(spans: Sequence[Span]) -> dict[str, Fraction]:
    """What paid spans of a known price cost, by currency."""
    amounts: dict[str, Fraction] = {}
    for span in spans:
        if span.paid and span.price is not None:
            amounts[span.currency] = amounts.get(span.currency, Fraction(0)) + span.amount
    return amounts


def _sum(cause: Cause, spans: Sequence[Span]) -> CauseLine:
    paid = sum(span.micros for span in spans if span.paid)
    return CauseLine(cause, sum(span.micros for span in spans), paid, amounts_of(spans))


def _micros(at: float) -> int:
    return round(at * MICROS)


class _Pen:
    """Draws spans one behind the other. Clocks of several machines may disagree: what lies behind it is passed over."""

    def __init__(self, begin: int) -> None:
        self.spans: list[Span] = []
        self.at = begin
        self._payer: tuple[int, bool, float | None, str] = (0, False, None, "")

    def take(self, record: AttemptRecord) -> None:
        """What follows belongs to this attempt, and its machine is paid."""
        self._payer = (record.attempt, True, record.origin.price, record.origin.currency)

    def between(self, kept: AttemptRecord | None) -> None:
        """What follows belongs to no attempt; paid only if the machine of ``kept`` was kept."""
        self._payer = (0, False, None, "") if kept is None else (0, True, kept.origin.price, kept.origin.currency)

    def draw(self, until: int, cause: Cause) -> None:
        if until <= self.at:
            return
        attempt, paid, price, currency = self._payer
        self.spans.append(Span(attempt, cause, self.at, until, paid, price, currency))
        self.at = until


def _draw_gap(pen: _Pen, before: AttemptRecord, record: AttemptRecord) -> None:
    kept = _same_machine(before, record)
    pen.between(before if kept else None)
    silent = before.ended is None
    pen.draw(_micros(record.claimed_at), Cause.SILENT if silent else Cause.RESTART if kept else Cause.WAITING)


def _same_machine(before: AttemptRecord, record: AttemptRecord) -> bool:
    """Whether one agent started both. A pod that comes again may have the name and the process number of the last one,
    so they tell only where the agent had no reason to leave."""
    if before.ended is None or before.ended.cause not in _KEPT_MACHINE:
        return False
    return before.origin == record.origin


def _draw_attempt(pen: _Pen, record: AttemptRecord, restored_at: Mapping[int, float], kept: int | None) -> None:
    """``kept``: the lowest step from which a later attempt went on; None where none did."""
    end = _micros(record.last_seen_at)
    begin = restored_at.get(record.attempt)
    if begin is None and not record.committed:
        return pen.draw(end, Cause.RESTART)
    if begin is not None:
        pen.draw(min(end, _micros(begin)), Cause.RESTART)
    step = restored_step(record)
    for commit in record.committed:
        boundary = _micros(commit.at - commit.event.seconds)
        _draw_steps(pen, min(end, boundary), step, commit.step, kept)
        pen.draw(min(end, max(pen.at, boundary) + _micros(commit.event.stall)), Cause.STALLS)
        step = max(step, commit.step)
    return _draw_rest(pen, record, step, end, kept)


def _draw_steps(pen: _Pen, until: int, first: int, last: int, kept: int | None) -> None:
    """Training from step ``first`` to ``last``, committed: what lies above ``kept`` was done again."""
    if kept is None or last <= kept:
        return pen.draw(until, Cause.USEFUL)
    if 0 <= first < kept:
        pen.draw(pen.at + max(0, until - pen.at) * (kept - first) // (last - first), Cause.USEFUL)
    return pen.draw(until, Cause.REPEATED)


def _draw_rest(pen: _Pen, record: AttemptRecord, step: int, end: int, kept: int | None) -> None:
    """What followed the last committed step, or the start where there is none."""
    if record.ended is not None and 0 <= record.ended.last_step <= step:
        if record.committed:
            pen.draw(min(end, _micros(record.committed[-1].at)), Cause.STALLS)
        return pen.draw(end, Cause.RESTART)
    return pen.draw(end, Cause.UNDURABLE if kept is None else Cause.REPEATED)
