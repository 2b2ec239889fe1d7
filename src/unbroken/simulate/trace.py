"""A trace: how many instances of a pool could be had, tick by tick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unbroken.errors import ConfigError

_ROUNDING = 1e-5
"""Ticks by which a moment may lie beside a tick's beginning: dates in hours have that much rounding."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Recorded availability of one pool.

    Raises:
        ConfigError: it is empty, or a count, a price or the length of a tick cannot be (kind ``trace``).
    """

    name: str
    gap: float
    """Hours of a tick."""
    counts: Any
    """int64, shape (ticks,): instances that could be had during all of a tick."""
    prices: Any = None
    """float64, shape (ticks,): of an instance-hour, NaN where not known; or None."""
    form: str = ""
    """What the file was taken for, in words."""

    def __post_init__(self) -> None:
        if len(self.counts) == 0 or not 0.0 < self.gap < float("inf"):
            raise trace_error(self.name, "it covers no time")
        if self.counts.min() < 0:
            raise trace_error(self.name, f"it counts {self.counts.min()} instances")
        if self.prices is not None:
            if len(self.prices) != len(self.counts):
                raise trace_error(self.name, f"it has {len(self.prices)} prices for {len(self.counts)} ticks")
            if np.isinf(self.prices).any() or (np.nan_to_num(self.prices) < 0.0).any():
                raise trace_error(self.name, "a price is negative or infinite")

    @property
    def hours(self) -> float:
        """What it covers."""
        return len(self.counts) * self.gap

    def up(self, nodes: int = 1) -> Any:
        """bool, shape (ticks,): whether so many instances could be had at once."""
        return self.counts >= nodes

    def part(self, begin: int, end: int) -> Trace:
        """The ticks from ``begin`` to before ``end``."""
        prices = None if self.prices is None else self.prices[begin:end]
        return Trace(self.name, self.gap, self.counts[begin:end], prices, self.form)


def trace_error(name: str, found: str, hint: str = "") -> ConfigError:
    """What is wrong with a trace, in words."""
    return ConfigError(f"the trace {name} cannot be used: {found}", kind="trace", hint=hint)


def from_changes(name: str, changes: list[tuple[float, int]], gap: float, form: str) -> Trace:
    """A trace from moments (hours) and the count from each on.

    Of several counts at one moment the last is in force. A tick takes the smallest count within it, so that an
    interruption shorter than a tick is not lost. The record ends at its last moment.
    """
    changes = list(dict(sorted(changes, key=lambda change: change[0])).items())
    begin, end = changes[0][0], changes[-1][0]
    ticks = int(np.ceil((end - begin) / gap - _ROUNDING))
    if ticks < 1:
        raise trace_error(name, "it has a single moment, and covers no time")
    if ticks > 50_000_000:
        raise trace_error(name, f"it covers {end - begin:.0f} h", "Is the unit of its times the one that was taken?")
    moments = np.array([moment - begin for moment, _ in changes]) / gap
    values = np.array([count for _, count in changes], dtype=np.int64)
    # A count that was in force when a tick began counts in it, and so does each that came within it.
    force = np.searchsorted(moments, np.arange(ticks) + _ROUNDING, side="right") - 1
    counts = values[force]
    within = (moments + _ROUNDING).astype(np.int64)
    np.minimum.at(counts, within[within < ticks], values[within < ticks])
    return Trace(name, gap, counts, None, form)
