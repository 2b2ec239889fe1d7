"""The tables of ``unbroken report``; each fits 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from unbroken.clock import format_duration
from unbroken.journal import Entry
from unbroken.journal.events import Decided
from unbroken.report.causes import CAUSE_TEXT, MICROS, Span, amounts_of, by_cause
from unbroken.report.cost import money
from unbroken.report.interruptions import Interruption
from unbroken.report.text import make_table


def causes_table(spans: Sequence[Span]) -> Table:
    """Time, share of it, paid time and money by cause; causes that took no time are left out."""
    currencies = sorted(amounts_of(spans))
    titles = [f"cost {currency}".rstrip() for currency in currencies]
    table = make_table("where it went", "time", "share", "paid", *titles, right=("time", "share", "paid", *titles))
    whole = sum(span.micros for span in spans)
    for line in by_cause(spans):
        if line.micros:
            amounts = [money(float(line.amounts.get(currency, 0)), "") for currency in currencies]
            table.add_row(*_row(CAUSE_TEXT[line.cause], line.micros, whole, line.paid), *amounts)
    total = amounts_of(spans)
    paid = sum(span.micros for span in spans if span.paid)
    table.add_section()
    table.add_row(*_row("in all", whole, whole, paid), *(money(float(total[currency]), "") for currency in currencies))
    return table


def _row(text: str, micros: int, whole: int, paid: int) -> tuple[str, str, str, str]:
    return text, format_duration(micros / MICROS), f"{micros / whole:.1%}", format_duration(paid / MICROS)


def interruptions_table(cuts: Sequence[Interruption]) -> Table:
    """One row each; ``-`` where a moment is not known or there was none."""
    steps, durations = ("stop\nstep", "durable\nstep"), ("to\nstop", "to\ndurable", "to next\nattempt", "to\ntraining")
    numbers = ("attempt", *steps, *durations, "in all")
    table = make_table("attempt", "why it ended", *numbers[1:], right=numbers)
    table.padding = (0, 0)  # nine columns are to fit 80
    for cut in cuts:
        table.add_row(
            str(cut.attempt), _why(cut), _step(cut.stop_step), _step(cut.durable_step),
            *map(_seconds, (cut.to_stop, cut.to_durable, cut.to_node, cut.to_training, cut.total)),
        )  # fmt: skip
    return table


def _why(cut: Interruption) -> str:
    notice = f"{cut.source} notice" if cut.source else ""
    if cut.cause == "interrupted":
        return notice or cut.cause
    return f"{cut.cause}, {notice}" if notice else cut.cause


def decisions_table(decisions: Sequence[Entry], start: float) -> Table:
    """What a policy decided, with the moment counted from ``start`` (wall-clock seconds)."""
    table = make_table("moment", "action", "pool", "policy", "rule", right=("moment",))
    table.padding = (0, 0)  # a pool's name is long, and is to be read whole
    for column in table.columns:
        column.overflow = "fold"
    for entry in decisions:
        if isinstance(entry.event, Decided):
            event, at = entry.event, entry.at - start
            moment = ("+" if at >= 0 else "") + format_duration(at)
            table.add_row(moment, event.action, event.pool or "-", event.policy, event.rule)
    return table


def _step(step: int | None) -> str:
    return "-" if step is None else str(step)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)
