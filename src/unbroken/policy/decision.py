"""What a policy is asked and what it answers.

A policy is written once, as an ordered list of rules over plain arithmetic and comparisons, of which the first that
holds decides. Fed with numbers, as in production, it gives one :class:`Decision` with the numbers that made it; fed
with arrays, as in a replay of a thousand starts, it gives a thousand. Hours throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from unbroken.errors import ConfigError

Number = Any
"""A float, or an array of them with one for each replayed start."""
Flag = Any
"""A truth value, or an array of them. Combine with ``&`` and ``|``, which both know; ``~`` turns True into -2."""

LONG_AGO = 1e6
"""Age of a state whose beginning nobody saw: a random moment lies more likely in a long stay than in a short one."""


class Tier(IntEnum):
    """What is paid for."""

    IDLE = 0
    SPOT = 1
    ON_DEMAND = 2

    @property
    def label(self) -> str:
        return ("idle", "spot", "on-demand")[self]


@dataclass(frozen=True, slots=True)
class Terms:
    """What does not change while a run goes on.

    Raises:
        ConfigError: a value cannot be (kind ``terms``).
    """

    work: float
    """Training to be done, in hours without any interruption, saves included."""
    allowed: float
    """From the beginning of the run to its deadline."""
    changeover: float
    """What a start costs on average before it makes progress (provision, setup, rework); paid at the new price."""
    on_demand_price: float
    """Of an hour."""
    spot_price: float
    """Of an hour, as expected."""
    longest_changeover: float = 0.0
    """What a start costs at worst; the promise to meet the deadline holds up to here. Never below ``changeover``."""
    period: float = 0.0
    """At most so long between two decisions."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "longest_changeover", max(self.changeover, self.longest_changeover))
        values = (self.work, self.allowed, self.changeover, self.on_demand_price, self.spot_price, self.period)
        if not all(0.0 <= value < float("inf") for value in (*values, self.longest_changeover)) or self.work == 0.0:
            raise ConfigError(
                f"{self} is nothing to decide about", kind="terms",
                hint="Hours and prices are finite and not negative, and there is work",
            )  # fmt: skip

    @property
    def net(self) -> float:
        """Slack below which nothing but on-demand is begun.

        A start on spot may use a changeover and be interrupted at once, and the start on demand that follows uses
        another; waiting may go on until the next decision, and one more changeover follows.
        """
        return self.longest_changeover + max(self.longest_changeover, self.period)

    @property
    def feasible(self) -> bool:
        """Whether on-demand alone, begun at once, meets the deadline for certain."""
        return self.work + self.longest_changeover <= self.allowed


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known at the moment of a decision. Numbers, or arrays of the same length."""

    elapsed: Number
    """Since the run began."""
    done: Number
    """Hours of :attr:`Terms.work` that are behind the run."""
    tier: Number
    """What runs now: a :class:`Tier`; an interruption has made it ``IDLE``."""
    spot_up: Flag
    """Whether spot can be had, or is held."""
    age: Number = LONG_AGO
    """Since spot came or went, whichever was last."""
    finished: Flag = False
    """The last step is done; ``done`` alone is an estimate."""


class Rule(NamedTuple):
    """One line of a policy."""

    name: str
    when: Flag
    action: Tier


class Policy(Protocol):
    """Anything that decides. Names are those of the command's options and of the journal."""

    @property
    def name(self) -> str: ...

    def rules(self, terms: Terms, now: Situation) -> Sequence[Rule]:
        """In the order in which they count; the last one always holds."""

    def numbers(self, terms: Terms, now: Situation) -> Mapping[str, Number]:
        """What the policy looked at, beyond what :func:`decide` notes for all of them."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do until something changes, and why."""

    action: Tier
    policy: str
    rule: str
    numbers: Mapping[str, float]


def work_left(terms: Terms, now: Situation) -> Number:
    """Hours of training to do; negative where the estimate was too low."""
    return terms.work - now.done


def time_left(terms: Terms, now: Situation) -> Number:
    """Hours to the deadline; negative behind it."""
    return terms.allowed - now.elapsed


def slack(terms: Terms, now: Situation) -> Number:
    """Hours that may be spent without progress."""
    return time_left(terms, now) - work_left(terms, now)


def common_rules(terms: Terms, now: Situation) -> list[Rule]:
    """With what every policy that keeps a deadline begins (Wu et al., NSDI'24, section 4)."""
    return [
        Rule("done", now.finished, Tier.IDLE),
        Rule("spot is running", now.tier == Tier.SPOT, Tier.SPOT),
        Rule("the estimate is used up", work_left(terms, now) <= 0.0, Tier.ON_DEMAND),
    ]


def decide(policy: Policy, terms: Terms, now: Situation) -> Decision:
    """The decision for one run, from plain numbers."""
    rule = next(rule for rule in policy.rules(terms, now) if rule.when)
    numbers = {
        "work_left": work_left(terms, now),
        "time_left": time_left(terms, now),
        "slack": slack(terms, now),
        "net": terms.net,
        "spot_up": float(now.spot_up),
        "age": now.age,
        **policy.numbers(terms, now),
    }
    return Decision(rule.action, policy.name, rule.name, {key: float(value) for key, value in numbers.items()})


def decide_all(policy: Policy, terms: Terms, now: Situation) -> Any:
    """The same for arrays: an array of tiers (int8). Needs numpy."""
    import numpy as np

    shape = np.shape(now.done)
    action = np.zeros(shape, dtype=np.int8)
    for rule in reversed(policy.rules(terms, now)):
        np.copyto(action, np.int8(rule.action), where=np.broadcast_to(rule.when, shape))
    return action
