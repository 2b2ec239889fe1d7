"""Which checkpoints to keep. Pure: records and logged values in, a choice out.

Policies are united: a checkpoint is kept if any of them keeps it. Whatever they say, the newest ones stay, because a
damaged newest must have something to fall back to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, NamedTuple

from unbroken.clock import format_duration
from unbroken.errors import ConfigError
from unbroken.journal import CheckpointRecord

Values = Mapping[str, Mapping[str, float]]
"""What each checkpoint logged last, by manifest key and name. A checkpoint that is not in it has values that are not
known."""

FORM = "Write for example last=3,every=10000,best=loss (keys: last, every, best)"
_SAFE = 2
"""So many of the newest checkpoints are kept whatever the policy says."""
_NEWEST = "newest"


class Policy(ABC):
    """Says which checkpoints are worth keeping. ``a | b`` keeps what either keeps."""

    @property
    def metrics(self) -> frozenset[str]:
        """Names of the logged values that it must know."""
        return frozenset()

    @property
    def parts(self) -> tuple[Policy, ...]:
        """The policies that this one unites; itself where it is a single one."""
        return (self,)

    @abstractmethod
    def keeps(self, records: Sequence[CheckpointRecord], values: Values) -> set[str]:
        """Manifest keys of the checkpoints to keep, of ``records``, which are in the order of their commits."""

    def __or__(self, other: Policy) -> Policy:
        return KeepAny((*self.parts, *other.parts))


@dataclass(frozen=True)
class KeepAny(Policy):
    """Keeps what any of its parts keeps."""

    policies: tuple[Policy, ...]

    @property
    def metrics(self) -> frozenset[str]:
        return frozenset[str]().union(*(part.metrics for part in self.policies))

    @property
    def parts(self) -> tuple[Policy, ...]:
        return self.policies

    def keeps(self, records: Sequence[CheckpointRecord], values: Values) -> set[str]:
        return set[str]().union(*(part.keeps(records, values) for part in self.policies))

    def __str__(self) -> str:
        return ",".join(map(str, self.policies))


@dataclass(frozen=True)
class KeepLast(Policy):
    """Keeps the ``n`` newest commits.

    Raises:
        ConfigError: ``n`` is no whole number from 1.
    """

    n: int

    def __post_init__(self) -> None:
        _demand_count(self.n, "KeepLast")

    def keeps(self, records: Sequence[CheckpointRecord], values: Values) -> set[str]:  # noqa: ARG002
        return {_key(record) for record in records[-self.n :]}

    def __str__(self) -> str:
        return f"last={self.n}"


@dataclass(frozen=True)
class KeepEvery(Policy):
    """Keeps the first checkpoint at or after each multiple of ``steps``, or the first of each period of ``hours``.

    Exactly one of the two is given. Of commits of the same step the newest stands for them. Periods lie on a grid of
    the wall clock, so they do not depend on when the run began.

    Raises:
        ConfigError: none or both are given, or it is not positive.
    """

    steps: int | None = None
    hours: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.hours is None):
            raise ConfigError("KeepEvery takes either steps or hours", kind="keep", hint=FORM)
        if self.steps is not None:
            _demand_count(self.steps, "KeepEvery")
        elif not (isinstance(self.hours, int | float) and 0 < self.hours < math.inf):
            raise ConfigError(f"KeepEvery takes hours above 0, not {self.hours!r}", kind="keep", hint=FORM)

    def keeps(self, records: Sequence[CheckpointRecord], values: Values) -> set[str]:  # noqa: ARG002
        chosen: dict[int, CheckpointRecord] = {}
        for record in records:
            if self.hours is not None:
                chosen.setdefault(int(record.at // (self.hours * 3600.0)), record)
            elif self.steps is not None and (number := record.step // self.steps) > 0:
                first = chosen.setdefault(number, record)
                # A later commit of a step replaces the earlier one: training went on from the later.
                chosen[number] = record if record.step <= first.step else first
        return {_key(record) for record in chosen.values()}

    def __str__(self) -> str:
        return f"every={self.steps}" if self.hours is None else f"every={format_duration(self.hours * 3600.0)}"


@dataclass(frozen=True)
class KeepBest(Policy):
    """Keeps the ``n`` checkpoints with the smallest (``mode="min"``) or largest value of a logged metric.

    A checkpoint's value is the last that was logged since its parent. Without one, or with one that is not finite, it
    is not among the best; where the values cannot be read it is kept. Of equal values the newer is better.

    Raises:
        ConfigError: the name is empty, ``n`` no whole number from 1, or ``mode`` neither ``"min"`` nor ``"max"``.
    """

    metric: str
    n: int = 1
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        _demand_count(self.n, "KeepBest")
        if not self.metric:
            raise ConfigError("KeepBest needs the name of a logged value", kind="keep", hint=FORM)
        if self.mode not in ("min", "max"):
            raise ConfigError(f"KeepBest has the modes 'min' and 'max', not {self.mode!r}", kind="keep", hint=FORM)

    @property
    def metrics(self) -> frozenset[str]:
        return frozenset({self.metric})

    def keeps(self, records: Sequence[CheckpointRecord], values: Values) -> set[str]:
        unknown = {_key(record) for record in records if _key(record) not in values}
        sign = 1.0 if self.mode == "min" else -1.0
        ranked = []
        for record in records:
            value = values.get(_key(record), {}).get(self.metric, math.nan)
            if math.isfinite(value):
                ranked.append((sign * value, -record.n, _key(record)))
        return unknown | {key for _, _, key in sorted(ranked)[: self.n]}

    def __str__(self) -> str:
        count = f":{self.n}" if self.n > 1 else ""
        return f"best={self.metric}:{self.mode}{count}"


class Choice(NamedTuple):
    """What a policy chose: checkpoints in the order of their commits."""

    kept: list[CheckpointRecord]
    retired: list[CheckpointRecord]


def choose(
    records: Sequence[CheckpointRecord],
    metrics: Values,
    policy: Policy | None,
    *,
    damaged: AbstractSet[str] = frozenset(),
) -> Choice:
    """Divide checkpoints into those to keep and those to retire.

    The two newest commits are kept whatever the policy says, and the two newest that are not damaged.

    Args:
        records: committed and not retired, in the order of their commits.
        metrics: the logged values that the policy must know.
        policy: None keeps everything.
        damaged: manifest keys of checkpoints known to be damaged. They take no sound one's place: the policy is asked
            with them and without them, and both answers are kept.
    """
    reasons = why_kept(records, metrics, policy, damaged=damaged)
    return Choice(
        [record for record in records if _key(record) in reasons],
        [record for record in records if _key(record) not in reasons],
    )


def why_kept(
    records: Sequence[CheckpointRecord],
    metrics: Values,
    policy: Policy | None,
    *,
    damaged: AbstractSet[str] = frozenset(),
) -> dict[str, list[str]]:
    """The reasons for which each checkpoint is kept, by manifest key; what is not in it is to be retired.

    A reason is ``newest`` (kept whatever the policy says), a policy in its textual form, or ``all`` where there is
    none. The arguments are those of :func:`choose`.
    """
    reasons: dict[str, list[str]] = {}
    sound = [record for record in records if _key(record) not in damaged]
    named: list[tuple[str, Policy]] = [(_NEWEST, KeepLast(_SAFE))]
    named += [(str(part), part) for part in policy.parts] if policy else []
    for name, part in named:
        for key in part.keeps(records, metrics) | part.keeps(sound, metrics):
            reasons.setdefault(key, []).append(name)
    if policy is None:
        for record in records:
            reasons.setdefault(_key(record), []).append("all")
    return reasons


def _demand_count(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{what} takes a whole number from 1, not {value!r}", kind="keep", hint=FORM)


def _key(record: CheckpointRecord) -> str:
    return record.event.manifest
