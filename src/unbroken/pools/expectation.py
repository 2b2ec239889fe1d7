"""What a run is expected to cost in one pool: the mean, in closed form. Hours and 1/h.

The run is a busy period: a base of work, saves and the first start, to which each interruption adds a restart and what
is done again. Its mean is base / (1 - hazard x added) (the M/G/1 queue's); saves come at Young's interval (1974).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unbroken.policy.interval import first_order_interval


@dataclass(frozen=True)
class Terms:
    """What the run brings along, the same in every pool."""

    work: float
    """Training without interruption, on the machine for which it was measured."""
    nodes: int = 1
    stall: float = 2.0 / 3600.0
    """Of the loop, for each save."""
    upload: float = 90.0 / 3600.0
    """Until a save is durable."""
    restart: float = 0.2
    """Paid, from a machine to the next step."""
    notice_success: float = 0.9
    """Chance that a save at the notice is in time."""


@dataclass(frozen=True)
class Expected:
    """Means. Paid hours are of one node; the cost is that of all."""

    cost: float
    hours: float
    """Paid: work, saves, rework and restarts."""
    finish: float
    """Paid hours and waiting for machines."""
    work: float
    saves: float
    rework: float
    restarts: float
    waiting: float
    interruptions: float
    interval: float
    """Between saves."""


def expect(terms: Terms, *, price: float, hazard: float, wait: float = 0.0, speed: float = 1.0) -> Expected:
    """What is to be expected of the run in a pool.

    Args:
        price: of a node for an hour.
        hazard: interruptions of a node per hour; a run of several nodes is interrupted by each.
        wait: for machines, at each start.
        speed: of this machine against the one for which the work was measured.

    Returns:
        infinite cost and hours where interruptions undo more than is done between them.
    """
    work, rate = terms.work / speed, hazard * terms.nodes
    lossy = rate * (1.0 - terms.notice_success)
    interval = work if lossy <= 0.0 else max(terms.upload, first_order_interval(terms.stall, 1.0 / lossy))
    interval = min(work, interval) or work
    saves = max(0.0, work / interval - 1.0) * terms.stall
    rework = (1.0 - terms.notice_success) * (terms.upload + (interval + terms.stall) / 2.0)
    stable = 1.0 - rate * (terms.restart + rework)
    hours = (work + saves + terms.restart) / stable if stable > 0.0 else math.inf
    count = rate * hours if rate > 0.0 else 0.0
    waiting = wait * (1.0 + count) if wait > 0.0 else 0.0
    return Expected(
        cost=hours * price * terms.nodes, hours=hours, finish=hours + waiting, work=work, saves=saves,
        rework=count * rework, restarts=terms.restart * (1.0 + count), waiting=waiting, interruptions=count,
        interval=interval,
    )  # fmt: skip
