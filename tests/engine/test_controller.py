"""Decisions for one run: what the policy sees, what is written down, and that the deadline holds."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbroken.engine.controller import IDLE, Controller, Offers, Order
from unbroken.journal import Journal, Lease, Origin
from unbroken.journal.events import AttemptEnded, CheckpointCommitted, Decided, Note, RunFinished
from unbroken.policy.choice import make_policy
from unbroken.policy.decision import Policy, Terms, Tier
from unbroken.policy.stays import Seen
from unbroken.store import open_store
from unbroken.testing import FakeClock

OFFERS = Offers({"p4d/a/spot": 8.0, "p4d/b/spot": 8.3}, ("p4d/on-demand", 24.0))
TERMS = Terms(work=4.0, allowed=8.0, changeover=0.2, on_demand_price=24.0, spot_price=8.0, period=0.1)
HERE = Origin("controller", 7)


@functools.cache
def made(name: str) -> Policy:
    return make_policy(name, TERMS, Seen().rates)


class Driven:
    """A run whose hours pass as told: 100 steps in 4 hours, a save at each look."""

    def __init__(self, folder: Path, policy: str = "greedy") -> None:
        self.clock = FakeClock(1000.0)
        self.journal = Journal.create(open_store(str(folder / "run"), create=True), clock=self.clock)
        self.controller = Controller(
            self.journal, made(policy), TERMS, OFFERS, steps=100, origin=HERE, clock=self.clock
        )  # fmt: skip
        self.running, self.step, self.late = IDLE, 0.0, 0.0
        self._lease: Lease | None = None
        self._ready = 0.0

    @property
    def decisions(self) -> list[Decided]:
        return [entry.event for entry in self.journal.state.decisions if isinstance(entry.event, Decided)]

    def look(self, *up: str) -> Order:
        """Take from the run what is not up, ask, and do as told."""
        if self.running.tier == Tier.SPOT and self.running.pool not in up:
            self._end("interrupted")
        order = self.controller.order(self.running, {pool: pool in up for pool in OFFERS.spot})
        if order != self.running:
            if self.running != IDLE:
                self._end("interrupted")
            if order != IDLE:
                self._begin(order)
            self.running = order
        return order

    def hours(self, hours: float) -> None:
        """Train so long."""
        self.clock.advance(hours * 3600.0)
        if self._lease is None:
            return
        used = min(hours, self._ready)
        self._ready -= used
        self.step = min(100.0, self.step + (hours - used) * 25.0)
        where = self.running.pool
        here = Origin("node", 1, pool=where)
        name = f"manifests/{self.clock.now()}"
        self.journal.append(CheckpointCommitted(int(self.step), name, "sha", 1, 1), here, self._lease)
        if self.step >= 100.0:
            self.journal.append(RunFinished(100), here, self._lease)
            self._end("finished")

    def _begin(self, order: Order) -> None:
        self._lease = self.journal.claim(Origin("node", 1, pool=order.pool))
        self._ready = 0.2
        self.step = float(int(self.step))
        self.journal.append(Note("restored", "", {"step": int(self.step)}), HERE, self._lease)

    def _end(self, cause: str) -> None:
        assert self._lease is not None
        self.journal.append(AttemptEnded(cause, int(self.step)), HERE, self._lease)
        self._lease, self.running = None, IDLE


def test_spot_is_taken_while_there_is_slack_and_on_demand_when_there_is_none(tmp_path: Path) -> None:
    run = Driven(tmp_path)
    assert run.look("p4d/a/spot", "p4d/b/spot").pool == "p4d/a/spot"
    run.hours(1.0)
    assert run.look("p4d/a/spot") == run.running  # goes on
    assert run.look() == IDLE  # gone; there is slack to wait
    run.hours(3.4)
    assert run.look() == Order(Tier.ON_DEMAND, "p4d/on-demand", 24.0)
    assert [(each.action, each.rule, each.pool) for each in run.decisions] == [
        ("spot", "spot is up", "p4d/a/spot"),
        ("idle", "wait", ""),
        ("on-demand", "no slack to lose", "p4d/on-demand"),
    ]
    numbers = run.decisions[-1].numbers
    assert numbers["elapsed"] == pytest.approx(4.4)
    assert numbers["done"] == pytest.approx(0.8)  # a changeover of the hour made no step
    assert numbers["slack"] < numbers["net"]


def test_a_pool_that_took_the_run_is_taken_less_gladly(tmp_path: Path) -> None:
    run = Driven(tmp_path)
    both = ("p4d/a/spot", "p4d/b/spot")
    for _ in range(2):
        assert run.look(*both).pool == "p4d/a/spot"
        run.hours(0.3)
        run.look()
    assert run.look(*both).pool == "p4d/b/spot"
    prices = run.decisions[-1].numbers
    assert prices["price of p4d/b/spot"] < prices["price of p4d/a/spot"]


def test_a_pool_without_machines_is_tried_later(tmp_path: Path) -> None:
    run = Driven(tmp_path)
    run.controller.refused("p4d/a/spot")
    assert run.look("p4d/a/spot", "p4d/b/spot").pool == "p4d/b/spot"
    run.look()
    run.controller.granted("p4d/a/spot")
    assert run.look("p4d/a/spot", "p4d/b/spot").pool == "p4d/a/spot"


def test_the_same_again_is_no_decision(tmp_path: Path) -> None:
    run = Driven(tmp_path)
    for _ in range(5):
        run.look()
    for _ in range(5):
        run.look("p4d/b/spot")
    assert [each.action for each in run.decisions] == ["idle", "spot"]


def test_a_controller_that_was_started_again_goes_on_where_the_other_was(tmp_path: Path) -> None:
    run = Driven(tmp_path)
    run.look("p4d/a/spot")
    run.hours(1.0)
    again = Controller(run.journal, made("greedy"), TERMS, OFFERS, steps=100, origin=HERE, clock=run.clock)
    assert again.elapsed == pytest.approx(1.0)
    assert again.order(run.running, {"p4d/a/spot": True}) == run.running
    assert len(run.decisions) == 1


def test_nothing_is_paid_for_once_the_run_is_finished(tmp_path: Path) -> None:
    run = Driven(tmp_path)
    run.look("p4d/a/spot")
    run.hours(5.0)
    assert run.look("p4d/a/spot") == IDLE
    assert run.decisions[-1].rule == "done"


@settings(max_examples=12)
@given(
    st.sampled_from(["greedy", "uniform", "programme"]),
    st.lists(st.sets(st.sampled_from(list(OFFERS.spot))), min_size=90, max_size=90),
)
def test_the_deadline_is_met_whatever_spot_does(tmp_path_factory, policy: str, ups: list[set[str]]) -> None:
    run = Driven(tmp_path_factory.mktemp("run"), policy)
    finished = None
    for up in ups:
        order = run.look(*up)
        if run.journal.state.finished_step is not None:
            assert order == IDLE
            finished = run.controller.elapsed
            break
        run.hours(0.1)
    assert finished is not None
    assert finished <= TERMS.allowed + 1e-6
