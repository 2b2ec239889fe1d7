"""What a cadence costs in a replay: stalls while it runs, work done again when it is interrupted. Hours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unbroken.policy.decision import Terms


@dataclass(frozen=True)
class Saving:
    """A cadence and what a save costs."""

    every: float
    """Training between two saves; infinite for none but that at a notice."""
    stall: float
    """What the loop loses to a save."""
    upload: float
    """From a save's step until it is durable."""
    notice_success: float
    """Chance that an interruption is announced and the save that follows is durable in time."""

    @property
    def stretch(self) -> float:
        """Hours of a run for an hour of training."""
        return 1.0 + self.stall / self.every if self.every > 0.0 else 1.0

    @property
    def longest_loss(self) -> float:
        """Most that one interruption can cost: nothing was saved since just before the last interval."""
        return self.every * self.stretch + self.upload

    def terms(self, terms: Terms) -> Terms:
        """With the stalls in the work, and what can be lost in the longest changeover, on which the net rests."""
        if self.every == 0.0:
            return terms
        loss = min(self.longest_loss, terms.work)
        expected = (1.0 - self.notice_success) * min(self.every / 2.0 + self.upload, terms.work)
        return replace(
            terms, work=terms.work * self.stretch, changeover=terms.changeover + expected,
            longest_changeover=terms.longest_changeover + loss,
        )  # fmt: skip

    def lost(self, since_start: Any, random: np.random.Generator) -> Any:
        """Hours to be done again, of attempts that are interrupted so long after they began to make progress."""
        if self.every == 0.0:
            return np.zeros_like(since_start)
        period = self.every * self.stretch
        since = np.mod(since_start, period) if np.isfinite(period) else since_start
        lost = np.minimum(since_start, since + self.upload)
        return np.where(random.random(len(since_start)) < self.notice_success, 0.0, lost)


NO_SAVES = Saving(every=0.0, stall=0.0, upload=0.0, notice_success=1.0)
"""Nothing is ever lost and no save costs anything: changeovers alone count, as in the published comparisons."""
