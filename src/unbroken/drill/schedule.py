"""When a drill interrupts, and how: drawn from a seed, so that a drill can be repeated."""

from __future__ import annotations

import math
import random
from typing import Literal, get_args

import msgspec

from unbroken.errors import ConfigError

Kind = Literal["ec2-notice", "sigterm", "kill-trainer", "kill-both"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SAYS: dict[Kind, str] = {
    "ec2-notice": "two-minute EC2 notice",
    "sigterm": "SIGTERM",
    "kill-trainer": "SIGKILL trainer",
    "kill-both": "SIGKILL trainer+agent",
}
"""The kinds in words, short enough for a table."""

_TAIL_SECONDS = 1.5
"""Time that must be left before the end: a notice that is heard after the last step interrupts nothing."""


class Strike(msgspec.Struct, frozen=True):
    """One interruption: ``kind``, once ``step`` steps are completed and ``delay`` seconds have passed since, of node
    ``node`` alone, counted from 0."""

    kind: Kind
    step: int
    delay: float
    node: int = 0

    def describe(self, nodes: int) -> str:
        """In words, short enough for a table; with the node where there are several."""
        return f"{SAYS[self.kind]} on node {self.node}" if nodes > 1 else SAYS[self.kind]


def draw_schedule(
    *, seed: int, count: int, first_save: int, until: int, step_seconds: float, nodes: int = 1
) -> list[Strike]:
    """Draw interruptions, in the order of their steps.

    The steps between the first save and the end are divided into ``count`` parts of equal length, and one step is
    drawn from the middle of each: random, but never two at once. No kind comes twice before each has come once,
    though the order is drawn as well; and no node before each was interrupted once.

    Args:
        seed: equal seeds and arguments give equal schedules.
        count: at least four, so that each kind comes.
        first_save: the step of the first checkpoint.
        until: the step at which the training ends.
        step_seconds: how long one step takes; the delay after a step is shorter than that.
        nodes: how many there are.

    Raises:
        ConfigError: fewer than four, or the training is too short for so many.
    """
    if count < len(KINDS):
        raise ConfigError(
            f"a drill of {count} interruptions cannot have one of each kind", kind="interruptions",
            hint=f"Ask for at least {len(KINDS)}",
        )  # fmt: skip
    rng = random.Random(seed)
    end = until - _tail(until, first_save, step_seconds)
    part = (end - first_save) / count
    if part < 2:
        raise ConfigError(
            f"{count} interruptions do not fit between the first save at step {first_save} and the end at step {until}",
            kind="too-short",
            hint="Save more often with --every, train for more steps, or ask for fewer --interruptions",
        )  # fmt: skip
    steps = [first_save + math.ceil(part * (i + rng.uniform(0.15, 0.85))) for i in range(count)]
    delays = [round(rng.random() * step_seconds, 4) for _ in range(count)]
    kinds = _kinds(rng, count)
    drawn = zip(kinds, steps, delays, _nodes(rng, count, nodes), strict=True)
    return [Strike(kind, step, delay, node) for kind, step, delay, node in drawn]


def _tail(until: int, first_save: int, step_seconds: float) -> int:
    """Steps before the end that are left alone: a tenth, or what takes 1.5 s, but never more than half."""
    wanted = max(1, until // 10, math.ceil(_TAIL_SECONDS / max(step_seconds, 1e-6)))
    return min(wanted, (until - first_save) // 2)


def _kinds(rng: random.Random, count: int) -> list[Kind]:
    drawn: list[Kind] = []
    while len(drawn) < count:
        drawn += rng.sample(KINDS, len(KINDS))
    first, rest = drawn[: len(KINDS)], drawn[len(KINDS) : count]
    kinds = first + rest
    rng.shuffle(kinds)
    return kinds


def _nodes(rng: random.Random, count: int, nodes: int) -> list[int]:
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += rng.sample(range(nodes), nodes)
    return drawn[:count]
