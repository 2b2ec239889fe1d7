"""``every="auto"``: how long to train between two saves, from what saves cost here. Pure: seconds in, seconds out."""

from __future__ import annotations

import statistics
from collections import deque

from unbroken.clock import format_duration
from unbroken.every import Auto
from unbroken.policy.interval import best_interval
from unbroken.policy.observed_hazard import Hazard

SHORTEST = 60.0
"""Seconds between saves that cost next to nothing. Each is some requests that are paid and a journal entry that is
never pruned, and a minute of work is less than what any restart takes."""
FIRST_SECONDS = 60.0
"""Earliest first save of an attempt. Sooner it would save less work than the restart before it took."""
FIRST_STEPS = 10
"""Steps before the first save of an attempt: the first few compile, tune and allocate, and a save in the middle of that
measures them and not itself."""
_REMEMBERED = 5
_ENOUGH = 2
"""Saves before a contradiction is believed: the first one of a process touches fresh memory and is no measure."""


class Pace:
    """The interval between saves, from one save's boundary to the next.

    Each save is paid back before the next one: after a stall of S the loop trains for ``S / cap``. So saving stays
    under the cap whatever single saves cost, and an outlier lengthens one interval, not those that follow. What has to
    be foreseen (the next save's time to durable, the stall for the best interval) is the median of the last five.

    Work is lost from a boundary until the *next* save is durable. So the interval ends early enough for that one, too:
    at the tolerated loss less the time that a save takes. The loss outranks the cap.

    Args:
        auto: the cap and the tolerated loss.
        hazard: how often training is interrupted, if known: then no more often than what loses the least time.
    """

    def __init__(self, auto: Auto, hazard: Hazard | None = None) -> None:
        self._auto = auto
        self._mean_seconds = hazard.mean_seconds if hazard is not None else None
        self._stalls: deque[float] = deque(maxlen=_REMEMBERED)
        self._durables: deque[float] = deque(maxlen=_REMEMBERED)
        self._told: set[str] = set()

    @property
    def first(self) -> float:
        """Seconds of training before the first save, if :data:`FIRST_STEPS` steps are done by then."""
        return min(FIRST_SECONDS, self._auto.loss)

    @property
    def longest(self) -> float:
        """Seconds after which the next save must begin, whatever it costs, so that no more than the loss is lost."""
        return max(0.0, self._auto.loss - self._durable)

    @property
    def expected(self) -> float:
        """Seconds until the next save after one that begins now, as far as is known."""
        if not self._stalls:
            return self.first
        return self._interval(self._stall, self._durable)

    def measured(self, stall: float, durable: float) -> float:
        """A save was committed.

        Args:
            stall: seconds of training that it cost.
            durable: seconds from its boundary to its commit.

        Returns:
            seconds from its boundary until the next save.
        """
        self._stalls.append(max(0.0, stall))
        self._durables.append(max(0.0, durable))
        return self._interval(self._stalls[-1], self._durables[-1])

    def retry(self, shortest: float) -> float:
        """Seconds to wait after a save that failed: it stalled the loop, too."""
        return min(self._auto.loss, max(shortest, self._stall / self._auto.cap))

    def advice(self) -> str:
        """What contradicts itself among the cap, the loss and what was measured, each once; "" otherwise."""
        if len(self._stalls) < _ENOUGH:
            return ""
        for name, text in (
            ("loss", self._loss_advice()),
            ("cap", self._cap_advice()),
            ("hazard", self._hazard_advice()),
        ):
            if text and name not in self._told:
                self._told.add(name)
                return text
        return ""

    def _interval(self, stall: float, durable: float) -> float:
        wanted = max(SHORTEST, stall / self._auto.cap)
        if self._mean_seconds is not None:
            wanted = max(wanted, best_interval(self._stall, self._mean_seconds))
        return max(durable, min(wanted, self.longest))

    @property
    def _stall(self) -> float:
        # The lower median: of two, the first is the one that touched fresh memory.
        return statistics.median_low(self._stalls) if self._stalls else 0.0

    @property
    def _durable(self) -> float:
        return statistics.median_high(self._durables) if self._durables else 0.0

    def _loss_advice(self) -> str:
        loss, durable = self._auto.loss, statistics.median_low(self._durables)
        if 2.0 * durable <= loss:
            return ""
        return (
            f"a save takes {format_duration(durable)} to become durable here, so that {format_duration(2.0 * durable)} "
            f"of work can be lost between two of them, more than the {format_duration(loss)} that every=auto has to "
            "keep to; saves follow each other at once"
        )

    def _cap_advice(self) -> str:
        cap, loss, stall = self._auto.cap, self._auto.loss, self._stall
        interval = max(self.longest, self._durable)
        if stall <= cap * interval:
            return ""
        return (
            f"saving costs {_percent(stall / interval)} of the training time, not {_percent(cap)}: "
            f"{format_duration(stall)} for each save, and one every {format_duration(interval)}, to lose no more than "
            f"{format_duration(loss)} of work; {_percent(cap)} would take a loss of "
            f"{format_duration(stall / cap + self._durable)}"
        )

    def _hazard_advice(self) -> str:
        if self._mean_seconds is None:
            return ""
        stall, cap = self._stall, self._auto.cap
        best = max(best_interval(stall, self._mean_seconds), self._durable, SHORTEST)
        if stall <= cap * best:
            return ""
        return (
            f"with an interruption every {format_duration(self._mean_seconds)}, a save every {format_duration(best)} "
            f"would lose the least time; it costs {_percent(stall / best)} of it, and the cap is {_percent(cap)}"
        )


def _percent(share: float) -> str:
    return f"{100.0 * share:.2g}%" if share < 0.995 else f"{100.0 * share:.0f}%"
