"""A recorded spot market as the world of a job on this machine: a policy decides in it as it would in the real one."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from unbroken.clock import Clock, parse_duration
from unbroken.engine.controller import IDLE, Controller, Offers, Order
from unbroken.engine.placement import Seat
from unbroken.errors import ConfigError, StoreError
from unbroken.journal import Journal, Origin
from unbroken.policy.choice import check_policy, make_policy
from unbroken.policy.decision import Terms, Tier
from unbroken.policy.stays import Seen, stays_of
from unbroken.store import open_store

if TYPE_CHECKING:
    from unbroken.job import Job, Pool
    from unbroken.simulate.trace import Trace

_LOOK_SECONDS = 0.1
_STORE_SECONDS = 600.0
"""A store that cannot be read for so long ends the waiting for a start."""


class Market(msgspec.Struct, frozen=True):
    """How a job is to be played. Durations are texts, in the world's time."""

    traces: list[str]
    """Files, one for each spot pool of the job, in its order."""
    policy: str
    speed: float = 3600.0
    """Seconds of the world in a second here."""
    changeover: str = "12min"
    """From a start to the first step."""
    history: list[str] = []
    """Files from which the policy learns how long spot stays; without any it takes one end in ten hours."""


class RecordedMarket:
    """Which pools can be had, by traces that begin with the run and begin again at their end."""

    def __init__(self, traces: Mapping[str, Trace], nodes: int) -> None:
        self._up = {pool: (trace.up(nodes).tolist(), trace.gap) for pool, trace in traces.items()}

    def up(self, hours: float) -> dict[str, bool]:
        """So many hours after the run began."""
        return {pool: bool(ups[int(hours / gap) % len(ups)]) for pool, (ups, gap) in self._up.items()}


class PolicyPlacement:
    """Starts go where the controller says, and leave when the market takes them or the controller wants them elsewhere.

    Both are announced by SIGTERM, as a notice is.
    """

    def __init__(
        self, controller: Controller, market: RecordedMarket, job: Job, told: threading.Event, output: TextIO,
        clock: Clock,
    ) -> None:  # fmt: skip
        self._controller, self._market, self._job = controller, market, job
        self._told, self._output, self._clock = told, output, clock
        self._running = IDLE
        self._looked_at = float("-inf")
        self._failing_since: float | None = None

    def next_seat(self) -> Seat | None:
        self._running = IDLE
        while not self._told.is_set():
            order = self._order()
            if order is not None and order.tier != Tier.IDLE:
                self._running = order
                price = None if order.price is None else order.price / self._job.ranks.nodes
                return Seat(order.pool, price, self._job.currency)
            if self._controller.finished:
                return None
            self._clock.sleep(_LOOK_SECONDS)
        return None

    def leave_now(self) -> int | None:
        now = self._clock.monotonic()
        if now < self._looked_at + _LOOK_SECONDS:
            return None
        self._looked_at = now
        if self._running.tier == Tier.SPOT and not self._up()[self._running.pool]:
            self._say(f"{self._running.pool} is taken")
            return signal.SIGTERM
        order = self._order()
        if order is None or order == self._running or self._controller.finished:
            return None
        self._say(f"{self._running.pool} is left for {order.pool or 'nothing'}")
        return signal.SIGTERM

    def _up(self) -> dict[str, bool]:
        return self._market.up(self._controller.elapsed)

    def _order(self) -> Order | None:
        """None where the store does not answer: what runs goes on, and what waits asks again."""
        try:
            order = self._controller.order(self._running, self._up())
        except StoreError as error:
            now = self._clock.monotonic()
            if self._failing_since is None:
                self._failing_since = now
                self._say(f"the journal cannot be used, nothing is decided: {error.message}")
            if self._running == IDLE and now >= self._failing_since + _STORE_SECONDS:
                raise
            return None
        self._failing_since = None
        return order

    def _say(self, text: str) -> None:
        print(text, file=self._output, flush=True)


def check_market(job: Job, market: Market) -> None:
    """Say before the launch what cannot be played.

    Raises:
        ConfigError: the job lacks pools, prices, hours or a deadline, the traces do not fit the pools, or a value is
            none (kinds ``job``, ``trace``, ``policy``, ``market``).
    """
    _terms(job, market, 0.0)
    _traces(job, market)
    check_policy(market.policy)


def market_placement(
    job: Job, market: dict[str, Any], told: threading.Event, output: TextIO, clock: Clock
) -> PolicyPlacement:
    """The placement of a job in a recorded market; ``market`` as :class:`Market` builds it.

    Raises:
        ConfigError: as :func:`check_market`.
        StoreError: the journal cannot be opened.
    """
    played = msgspec.convert(market, Market)
    traces, hour = _traces(job, played), 3600.0 / played.speed
    terms = _terms(job, played, _LOOK_SECONDS / hour)
    policy = make_policy(played.policy, terms, lambda: _learnt(job, played.history).rates())
    journal = Journal.create(open_store(job.run, create=True), clock=clock)
    controller = Controller(
        journal, policy, terms, _offers(job), steps=job.steps, origin=Origin(socket.gethostname(), os.getpid()),
        clock=clock, hour=hour,
    )  # fmt: skip
    return PolicyPlacement(
        controller, RecordedMarket(traces, job.ranks.nodes), job, told, output, clock
    )  # fmt: skip


def _terms(job: Job, market: Market, period: float) -> Terms:
    if not job.expected_hours:
        raise ConfigError("the job has no expected_hours", kind="job", hint="Write expected_hours: 48")
    if not job.deadline or job.deadline[:4].isdigit():
        found = f"the deadline {job.deadline} is a moment" if job.deadline else "the job has no deadline"
        raise ConfigError(found, kind="job", hint="Write it as a duration from the start of the run: deadline: 60h")
    if not 0.0 < market.speed <= 1e6:
        raise ConfigError(f"the speed {market.speed:g} cannot be", kind="market", hint="3600 plays an hour in a second")
    offers = _offers(job)
    return Terms(
        work=job.expected_hours,
        allowed=parse_duration(job.deadline) / 3600.0,
        changeover=parse_duration(market.changeover) / 3600.0,
        on_demand_price=offers.on_demand[1],
        spot_price=min(offers.spot.values()),
        period=period,
    )


def _offers(job: Job) -> Offers:
    """Of all nodes together."""
    spot = {str(pool): _price(job, pool) * job.ranks.nodes for pool in job.pools if pool.market == "spot"}
    if not spot:
        raise ConfigError("the job has no spot pool", kind="job", hint="Write pools: [{instance_type: p4d.24xlarge}]")
    behind = [(_price(job, pool) * job.ranks.nodes, str(pool)) for pool in job.pools if pool.market == "on-demand"]
    if not behind and job.prices is not None:
        behind = [(job.prices.on_demand * job.ranks.nodes, "on-demand")]
    if not behind:
        raise ConfigError(
            "the job says nothing of on-demand", kind="job", hint="Write prices: {on_demand: 25, spot: 8}"
        )
    price, pool = min(behind)
    return Offers(spot, (pool, price))


def _price(job: Job, pool: Pool) -> float:
    price = job.price_of(pool)
    if price is None:
        raise ConfigError(f"the pool {pool} has no price", kind="job", hint="Write prices: {on_demand: 25, spot: 8}")
    return price


def _traces(job: Job, market: Market) -> dict[str, Trace]:
    from unbroken.simulate.formats import read_trace

    pools = [str(pool) for pool in job.pools if pool.market == "spot"]
    if len(market.traces) != len(pools):
        raise ConfigError(
            f"there are {len(market.traces)} traces for {len(pools)} spot pools", kind="trace",
            hint=f"Give one for each, in this order: {', '.join(pools)}",
        )  # fmt: skip
    return {pool: read_trace(Path(path)) for pool, path in zip(pools, market.traces, strict=True)}


def _learnt(job: Job, files: Sequence[str]) -> Seen:
    from unbroken.simulate.formats import read_trace

    seen = Seen()
    for path in files:
        trace = read_trace(Path(path))
        seen.add(stays_of(trace.up(job.ranks.nodes).tolist(), trace.gap))
    return seen
