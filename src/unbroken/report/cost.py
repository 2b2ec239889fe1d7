"""What machines cost: paid seconds times a price, nothing estimated."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from unbroken.report.timeline import AttemptLine


class Cost(msgspec.Struct, frozen=True):
    """Paid time at one price. ``seconds`` of one machine; ``price`` for an hour of it, in ``currency``."""

    seconds: float
    price: float
    currency: str

    @property
    def amount(self) -> float:
        """In ``currency``."""
        return self.seconds / 3600.0 * self.price

    def __str__(self) -> str:
        return money(self.amount, self.currency)


def cost_of(timeline: Sequence[AttemptLine]) -> list[Cost]:
    """Paid time of attempts whose price is known, one entry for each price and currency."""
    seconds: dict[tuple[float, str], float] = {}
    for line in timeline:
        if line.price is not None:
            key = (line.price, line.currency)
            seconds[key] = seconds.get(key, 0.0) + line.seconds
    return [Cost(paid, price, currency) for (price, currency), paid in sorted(seconds.items())]


def money(amount: float, currency: str) -> str:
    """Write an amount so that small ones keep their digits: ``412.50 USD``, ``0.0931 USD``."""
    digits = 2 if abs(amount) >= 1 or amount == 0 else 4
    return f"{amount:.{digits}f} {currency}".rstrip()
