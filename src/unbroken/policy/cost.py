"""What a run is expected to take and cost, in closed form. Hours and 1/h.

The model is a busy period: a base of work, saves and the first start, to which each interruption adds a restart and
what is lost, and those are interrupted as well. With hazard h and the added time Y its mean is ``base / (1 - h E[Y])``
(the M/G/1 queue's busy period, with the base as its first customer). Without saves an attempt must live through all
of the work: ``(exp(h W) - 1) / h`` paid hours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from unbroken.errors import ConfigError
from unbroken.policy.interval import best_interval

LEAST_LOSSY = 1.0 / 1000.0
"""Interruptions per hour that no notice saves, at the least: broken hardware and crashes are never announced, so that
nobody should rely on saves at notices alone."""


@dataclass(frozen=True)
class Setting:
    """A way to run. Nothing is negative.

    Raises:
        ConfigError: a value cannot be (kind ``plan``).
    """

    work: float
    """Training without any interruption, saves not included."""
    price: float
    """Of all nodes for an hour."""
    hazard: float = 0.0
    """Interruptions of the run per paid hour."""
    interval: float = math.inf
    """Training between two saves; infinite for none at all."""
    stall: float = 0.0
    """What the training loses to a save."""
    upload: float = 0.0
    """Until a save is durable."""
    restart: float = 0.0
    """Paid, from a machine to its first step."""
    notice_success: float = 0.0
    """Chance that an interruption is announced and the save at it becomes durable."""
    farewell: float = 0.0
    """Training lost to a save at a notice that was in time."""
    wait: float = 0.0
    """For a machine, before each start; not paid."""

    def __post_init__(self) -> None:
        finite = (self.work, self.price, self.hazard, self.stall, self.upload, self.restart, self.farewell, self.wait)
        if not all(0.0 <= value < math.inf for value in finite) or not 0.0 <= self.notice_success <= 1.0:
            raise ConfigError(f"{self} cannot be planned", kind="plan", hint="Nothing is negative or infinite")
        if self.work == 0.0 or not self.interval > 0.0:
            raise ConfigError("there is no work, or the interval is 0", kind="plan")

    @property
    def saves(self) -> int:
        """That are made if nothing happens: none at the end, which every way of running has."""
        return 0 if math.isinf(self.interval) else math.ceil(self.work / self.interval - 1e-9) - 1

    @property
    def base(self) -> float:
        """Paid hours if nothing happens."""
        return self.restart + self.work + self.saves * self.stall

    @property
    def lossy_hazard(self) -> float:
        """Interruptions per hour that no notice saved."""
        return self.hazard * (1.0 - self.notice_success)

    @property
    def loss(self) -> float:
        """Mean hours that an interruption takes from the training: half an interval and an upload, or a farewell."""
        period = self.interval + self.stall
        return (1.0 - self.notice_success) * (self.upload + period / 2.0) + self.notice_success * self.farewell


@dataclass(frozen=True)
class Forecast:
    """Means. ``finish`` is since the launch; the other hours are parts of it, and all but ``waiting`` are paid."""

    cost: float
    finish: float
    work: float
    saves: float
    rework: float
    restarts: float
    waiting: float
    interruptions: float

    @property
    def paid(self) -> float:
        return self.work + self.saves + self.rework + self.restarts


def best_setting(setting: Setting, most: float = math.inf) -> Setting:
    """With the interval that loses the least (:func:`unbroken.policy.interval.best_interval`).

    It is never shorter than an upload, for saves must not overtake each other, and otherwise never longer than
    ``most``, the largest loss that is borne.
    """
    interval = best_interval(setting.stall, 1.0 / max(setting.lossy_hazard, LEAST_LOSSY))
    return replace(setting, interval=max(setting.upload, min(interval, most, setting.work), 1e-6))


def forecast(setting: Setting) -> Forecast:
    """What is expected; everything is infinite where interruptions undo more than is done between them."""
    if math.isinf(setting.interval):
        return _without_saves(setting)
    stable = 1.0 - setting.hazard * (setting.restart + setting.loss)
    if stable <= 0.0:
        return _endless(setting)
    return _split(setting, setting.hazard * setting.base / stable)


def forecast_of(setting: Setting, interruptions: float) -> Forecast:
    """With just so many interruptions, each at a random moment of its interval."""
    return _split(setting, interruptions)


def worst_of(setting: Setting, interruptions: float) -> Forecast:
    """With just so many, each just before a save became durable."""
    loss = setting.upload + setting.interval + setting.stall
    return _split(replace(setting, notice_success=1.0, farewell=loss), interruptions)


def chance_at_first_try(setting: Setting) -> float:
    """That nothing happens until the end (exponential times between interruptions)."""
    return math.exp(-setting.hazard * setting.base)


def _split(setting: Setting, count: float) -> Forecast:
    rework, restarts = count * setting.loss, (1.0 + count) * setting.restart
    saves = setting.saves * setting.stall
    paid = setting.work + saves + rework + restarts
    waiting = (1.0 + count) * setting.wait
    return Forecast(
        paid * setting.price, paid + waiting, setting.work, saves, rework, restarts, waiting, count
    )  # fmt: skip


def _without_saves(setting: Setting) -> Forecast:
    """Each attempt must live through a start and all of the work."""
    through = setting.hazard * (setting.restart + setting.work)
    if through == 0.0:
        return _split(replace(setting, interval=setting.work), 0.0)
    if through > 700.0:  # exp would overflow, and nobody waits for it
        return _endless(setting)
    count = math.expm1(through)
    paid = count / setting.hazard
    # Attempts that are interrupted: count of them; in all (1 + count) starts, of which each is paid for as long as it
    # lives, (1 - exp(-h R)) / h in the mean.
    restarts = (1.0 + count) * -math.expm1(-setting.hazard * setting.restart) / setting.hazard
    waiting = (1.0 + count) * setting.wait
    rework = paid - setting.work - restarts
    return Forecast(paid * setting.price, paid + waiting, setting.work, 0.0, rework, restarts, waiting, count)


def _endless(setting: Setting) -> Forecast:
    return Forecast(math.inf, math.inf, setting.work, 0.0, math.inf, math.inf, math.inf, math.inf)
