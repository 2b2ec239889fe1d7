"""The plain policies: one market only, greedy, uniform progress.

Greedy and uniform progress are those of Wu et al., "Can't Be Late: Optimizing Spot Instance Savings under Deadlines"
(NSDI 2024), with :attr:`Terms.net` for its ``2 d``, so that they keep their promise up to the longest changeover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unbroken.policy.decision import (
    Number,
    Policy,
    Rule,
    Situation,
    Terms,
    Tier,
    common_rules,
    slack,
)


class _Nothing:
    """For policies that look at no number of their own."""

    def numbers(self, terms: Terms, now: Situation) -> Mapping[str, Number]:  # noqa: ARG002 - the interface
        return {}


@dataclass(frozen=True)
class SpotOnly(_Nothing):
    """Spot whenever there is any. Promises no deadline."""

    name: str = "spot-only"

    def rules(self, terms: Terms, now: Situation) -> Sequence[Rule]:  # noqa: ARG002 - the interface
        return [
            Rule("done", now.finished, Tier.IDLE),
            Rule("spot is up", now.spot_up, Tier.SPOT),
            Rule("wait", True, Tier.IDLE),
        ]


@dataclass(frozen=True)
class OnDemandOnly(_Nothing):
    """What everything else is compared with."""

    name: str = "on-demand"

    def rules(self, terms: Terms, now: Situation) -> Sequence[Rule]:  # noqa: ARG002 - the interface
        return [Rule("done", now.finished, Tier.IDLE), Rule("always", True, Tier.ON_DEMAND)]


@dataclass(frozen=True)
class Greedy(_Nothing):
    """Spot until the last moment, then on-demand to the end."""

    name: str = "greedy"

    def rules(self, terms: Terms, now: Situation) -> Sequence[Rule]:
        return [
            *common_rules(terms, now),
            Rule("on-demand to the end", now.tier == Tier.ON_DEMAND, Tier.ON_DEMAND),
            Rule("no slack to lose", slack(terms, now) < terms.net, Tier.ON_DEMAND),
            Rule("spot is up", now.spot_up, Tier.SPOT),
            Rule("wait", True, Tier.IDLE),
        ]


@dataclass(frozen=True)
class UniformProgress:
    """On-demand when behind an even pace, spot whenever there is any, back from on-demand when ahead of the pace."""

    hysteresis: bool = True
    """Leave on-demand only when ahead by what the way back and forth costs."""

    @property
    def name(self) -> str:
        return "uniform" if self.hysteresis else "uniform-plain"

    def pace(self, terms: Terms, hours: Number) -> Number:
        """Work that is done by then at an even pace."""
        return hours * (terms.work / terms.allowed) if terms.allowed else hours * 0.0 + terms.work

    def rules(self, terms: Terms, now: Situation) -> Sequence[Rule]:
        ahead_by = 2.0 * terms.changeover if self.hysteresis else 0.0
        tight = slack(terms, now) < terms.net
        leave = now.done >= self.pace(terms, now.elapsed + ahead_by)
        return [
            *common_rules(terms, now),
            Rule("no slack to lose", tight, Tier.ON_DEMAND),
            Rule("ahead, and spot is up", (now.tier == Tier.ON_DEMAND) & now.spot_up & leave, Tier.SPOT),
            Rule("on-demand until ahead", now.tier == Tier.ON_DEMAND, Tier.ON_DEMAND),
            Rule("spot is up", now.spot_up, Tier.SPOT),
            Rule("behind", now.done < self.pace(terms, now.elapsed), Tier.ON_DEMAND),
            Rule("ahead: wait", True, Tier.IDLE),
        ]

    def numbers(self, terms: Terms, now: Situation) -> Mapping[str, Number]:
        return {"done": now.done, "pace": self.pace(terms, now.elapsed)}


@dataclass(frozen=True)
class SafetyNet:
    """Another policy, as long as there is slack: below :attr:`Terms.net` nothing but on-demand is begun.

    It holds whatever the inner policy says and however wrong its model is: what it begins on spot can fail at once and
    the deadline is still met, with changeovers up to the longest.
    """

    inner: Policy

    @property
    def name(self) -> str:
        return self.inner.name

    def rules(self, terms: Terms, now: Situation) -> Sequence[Rule]:
        net = Rule("no slack to lose", slack(terms, now) < terms.net, Tier.ON_DEMAND)
        return [*common_rules(terms, now), net, *self.inner.rules(terms, now)]

    def numbers(self, terms: Terms, now: Situation) -> Mapping[str, Number]:
        return self.inner.numbers(terms, now)
