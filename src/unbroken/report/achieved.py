"""What interruptions cost in the end: goodput, and savings against on-demand that were really achieved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import msgspec

from unbroken.report.causes import MICROS, Cause, Span, amounts_of


class OnDemand(msgspec.Struct, frozen=True):
    """An hour on demand of the same machine; ``currency`` "" means that of the attempts."""

    price: float
    currency: str = ""


class Achieved(msgspec.Struct, frozen=True):
    """A run against its own useful work. Seconds, shares, money; None where not known, and ``unknown`` says why."""

    useful_seconds: float
    paid_seconds: float
    goodput: float | None
    """Useful over paid. At most so much where ``silent_seconds`` is not 0."""
    silent_seconds: float
    """Of attempts that gave no word any more: training that was lost, or waiting, and perhaps paid."""
    unpriced_seconds: float
    """Paid at a price that nobody wrote down."""
    on_demand_seconds: float
    """What the useful work takes where nothing interrupts and nothing is saved: itself, and the first start."""
    on_demand_amount: float | None
    saved: float | None
    """On-demand's amount less what was paid; negative where spot was dearer."""
    saved_share: float | None
    """Of on-demand's amount."""
    currency: str
    unknown: list[str]


def achieved_by(spans: Sequence[Span], on_demand: OnDemand | None) -> Achieved:
    """Judge a run by its spans (:func:`~unbroken.report.causes.spans_of`)."""
    useful = _total(span for span in spans if span.cause is Cause.USEFUL)
    paid = _total(span for span in spans if span.paid)
    unpriced = _total(span for span in spans if span.paid and span.price is None)
    needed = useful + _first_start(spans)
    amounts = amounts_of(spans)
    why = _why_unknown(amounts, unpriced, on_demand, useful)
    currency = (on_demand.currency if on_demand else "") or (next(iter(amounts)) if len(amounts) == 1 else "")
    alone = Fraction(on_demand.price) * needed / (3600 * MICROS) if on_demand else None
    saved = alone - sum(amounts.values()) if alone is not None and not why else None
    return Achieved(
        useful_seconds=useful / MICROS,
        paid_seconds=paid / MICROS,
        goodput=useful / paid if paid else None,
        silent_seconds=_total(span for span in spans if span.cause is Cause.SILENT) / MICROS,
        unpriced_seconds=unpriced / MICROS,
        on_demand_seconds=needed / MICROS,
        on_demand_amount=None if alone is None else float(alone),
        saved=None if saved is None else float(saved),
        saved_share=None if saved is None or not alone else float(saved / alone),
        currency=currency,
        unknown=why,
    )


def _total(spans: Iterable[Span]) -> int:
    return sum(span.micros for span in spans)


def _first_start(spans: Sequence[Span]) -> int:
    """From the claim to the training, of the first attempt that came to train."""
    for i, span in enumerate(spans):
        if span.cause not in (Cause.RESTART, Cause.WAITING, Cause.SILENT):
            before = spans[i - 1] if i else None
            return before.micros if before and before.attempt == span.attempt else 0
    return 0


def _why_unknown(amounts: dict[str, Fraction], unpriced: int, on_demand: OnDemand | None, useful: int) -> list[str]:
    why = []
    if on_demand is None:
        why.append("the on-demand price is not known: say --on-demand-price, or --job with prices")
    if unpriced or not amounts:
        why.append("the price of some attempts is not in the journal: start them with --price")
    if len(amounts) > 1:
        why.append(f"attempts are priced in several currencies: {', '.join(sorted(amounts))}")
    elif on_demand and on_demand.currency and amounts and on_demand.currency not in amounts:
        why.append(
            f"on-demand is priced in {on_demand.currency}, the attempts in {next(iter(amounts)) or 'no currency'}"
        )
    if not useful:
        why.append("no work counts yet")
    return why
