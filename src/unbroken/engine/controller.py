"""Decides for one run where it goes on: the policy of the simulator, fed with the journal and with what can be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unbroken.clock import Clock
from unbroken.engine.progress import hours_done
from unbroken.journal import Journal, Origin
from unbroken.journal.events import Decided
from unbroken.policy.decision import LONG_AGO, Decision, Policy, Situation, Terms, Tier, decide
from unbroken.policy.pool_choice import PoolDecision, PoolSeen, choose_pool
from unbroken.report import build_timeline

_NOT_THE_POOLS_FAULT = {"finished", "failed", "left", "stopped-no-progress"}
"""Ends of attempts that say nothing about their pool."""


@dataclass(frozen=True)
class Offers:
    """What may be paid for: pools by name, and the price of all nodes for an hour."""

    spot: Mapping[str, float]
    on_demand: tuple[str, float]


@dataclass(frozen=True)
class Order:
    """What is to run from here on."""

    tier: Tier
    pool: str = ""
    """"" while nothing is to run."""
    price: float | None = None
    """Of all nodes for an hour."""


IDLE = Order(Tier.IDLE)


class Controller:
    """Makes one decision after another. What it must know again after a restart is in the journal.

    Args:
        journal: of the run. It is read on at each decision, and each new one is written down.
        policy: what decides.
        terms: in hours, with the price of all nodes.
        offers: where the run may go.
        steps: of the whole training; None where that is not known.
        origin: who decides, for the journal.
        hour: seconds in an hour of the policy's: 3,600, or fewer where a recorded world is played faster.
    """

    def __init__(
        self,
        journal: Journal,
        policy: Policy,
        terms: Terms,
        offers: Offers,
        *,
        steps: int | None,
        origin: Origin,
        clock: Clock,
        hour: float = 3600.0,
    ) -> None:
        self._journal = journal
        self._policy = policy
        self._terms = terms
        self._offers = offers
        self._steps = steps
        self._origin = origin
        self._clock = clock
        self._hour = hour
        self._up: dict[str, bool] = {}
        self._changed: dict[str, float] = {}
        self._refusals: dict[str, int] = {}
        self._last: tuple[Order, Order] | None = None

    @property
    def elapsed(self) -> float:
        """Hours since the run was made."""
        return max(0.0, self._clock.now() - self._journal.info.created_at) / self._hour

    @property
    def finished(self) -> bool:
        """Whether the run was finished when the journal was last read."""
        return self._journal.state.finished_step is not None

    def order(self, running: Order, up: Mapping[str, bool]) -> Order:
        """What to do until something changes.

        Args:
            running: what is paid for now; :data:`IDLE` once an interruption has taken it.
            up: which spot pools can be had, as far as is known. A pool that runs is up.

        Raises:
            StoreError: the journal cannot be read, or the decision not be written. Nothing was decided.
        """
        self._journal.refresh()
        self._look(up)
        choice = self._choose(running)
        now = self._situation(running, choice)
        decision = decide(self._policy, self._terms, now)
        order = self._order(decision.action, running, choice)
        self._write(running, order, decision, now, choice)
        return order

    def refused(self, pool: str) -> None:
        """There was no machine in that pool after all."""
        self._refusals[pool] = self._refusals.get(pool, 0) + 1

    def granted(self, pool: str) -> None:
        """There was one."""
        self._refusals.pop(pool, None)

    def _look(self, up: Mapping[str, bool]) -> None:
        for pool, there in up.items():
            if self._up.get(pool, there) != there:
                self._changed[pool] = self.elapsed
            self._up[pool] = there

    def _choose(self, running: Order) -> PoolDecision | None:
        """The spot pool that would be taken; the one that runs, while it runs."""
        if running.tier == Tier.SPOT:
            return PoolDecision(running.pool, {})
        met = {name: [0.0, 0.0] for name in self._offers.spot}
        for line in build_timeline(self._journal.entries, self._journal.state):
            if line.pool in met:
                met[line.pool][0] += line.ended_at is not None and line.cause not in _NOT_THE_POOLS_FAULT
                met[line.pool][1] += line.seconds / self._hour
        seen = {
            name: PoolSeen(price, met[name][0], met[name][1], refusals=float(self._refusals.get(name, 0)))
            for name, price in self._offers.spot.items()
        }
        return choose_pool(seen, self._terms.changeover, [name for name, there in self._up.items() if there])

    def _write(
        self, running: Order, order: Order, decision: Decision, now: Situation, choice: PoolDecision | None
    ) -> None:
        """A decision that was made again, or that what runs goes on, is none."""
        if self._last == (running, order):
            return
        if order != running or order == IDLE:
            numbers = {**decision.numbers, "elapsed": now.elapsed, "done": now.done}
            numbers |= {} if choice is None else {f"price of {name}": each for name, each in choice.numbers.items()}
            event = Decided(order.tier.label, decision.policy, decision.rule, order.pool, numbers)
            self._journal.decide(event, self._origin)
        self._last = (running, order)

    def _situation(self, running: Order, choice: PoolDecision | None) -> Situation:
        state, elapsed = self._journal.state, self.elapsed
        changes = [self._changed[name] for name in self._offers.spot if name in self._changed]
        if choice is not None:
            changes = [self._changed[choice.pool]] if choice.pool in self._changed else []
        return Situation(
            elapsed=elapsed,
            done=hours_done(state, self._terms.work, self._steps, self._hour),
            tier=running.tier,
            spot_up=choice is not None,
            age=elapsed - max(changes) if changes else LONG_AGO,
            finished=state.finished_step is not None,
        )

    def _order(self, action: Tier, running: Order, choice: PoolDecision | None) -> Order:
        if action == running.tier:
            return running
        if action == Tier.SPOT and choice is not None:
            return Order(action, choice.pool, self._offers.spot[choice.pool])
        return Order(action, *self._offers.on_demand) if action == Tier.ON_DEMAND else IDLE
