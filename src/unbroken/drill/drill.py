"""A drill: one training twice, once undisturbed and once interrupted, and the proof that both end alike."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.drill.compare import Comparison, compare_runs
from unbroken.drill.interrupt import Made, Striker, sightings, without_effect
from unbroken.drill.schedule import Strike, draw_schedule
from unbroken.drill.watching import Listener, Onlooker
from unbroken.engine import AgentSettings, Launch, Layout, LocalGang
from unbroken.errors import EXIT_CONFIG, EXIT_FAILED, ChildError, ConfigError, NotFoundError
from unbroken.journal import Journal
from unbroken.report import AttemptLine, Cost, build_timeline, lost_seconds
from unbroken.store import open_store
from unbroken.testing import EC2MetadataService

_NOTICE_POLL = "0.2"
"""Seconds between an agent's looks at the metadata service: a drill's trainings are short."""


@dataclass(frozen=True)
class DrillPlan:
    """What to drill. ``store`` is a URI below which the runs ``baseline`` and ``interrupted`` are made."""

    command: Sequence[str]
    store: str
    logs: Path
    layout: Layout = field(default_factory=Layout)
    """Nodes and ranks of both trainings."""
    seed: int = 1
    interruptions: int = 5
    every: str = ""
    grace: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    on_demand: float = 0.0
    """Price of an hour of a node, in ``currency``; the undisturbed training is paid at it."""
    spot: float = 0.0
    """Price of an hour of a node; the interrupted training is paid at it."""
    currency: str = "USD"
    timeout: float = 3600.0
    """Seconds for each training."""
    check_determinism: bool = False
    """Train undisturbed a second time, and interrupt only if both ended alike."""


class DrillResult(msgspec.Struct):
    """How a drill went."""

    seed: int
    command: list[str]
    layout: Layout
    baseline_uri: str
    interrupted_uri: str
    schedule: list[Strike]
    attempts: list[AttemptLine]
    comparison: Comparison
    on_demand: Cost
    """Of the undisturbed training."""
    spot: Cost
    """Of the interrupted one."""
    lost_seconds: float
    missed: list[Strike]
    """Interruptions that were not made, or interrupted nothing."""
    deterministic: bool | None
    """Whether two undisturbed trainings ended alike; None where that was not asked."""

    @property
    def steps_repeated(self) -> int:
        return sum(line.steps_repeated for line in self.attempts)

    @property
    def passed(self) -> bool:
        return self.comparison.identical and not self.missed


def run_drill(plan: DrillPlan, listener: Listener, clock: Clock = SYSTEM_CLOCK) -> DrillResult:
    """Drill.

    Raises:
        ConfigError: the command never opens a run (kind ``no-run``), its training is too short (``too-short``), or it
            cannot be laid out as several ranks (``command``, ``nodes``).
        ChildError: a training failed or was not finished in time.
        DamagedError: a final checkpoint does not verify.
    """
    plan.layout.check(plan.command)
    with ExitStack() as services:
        metadata = [services.enter_context(EC2MetadataService(clock=clock)) for _ in range(plan.layout.nodes)]
        return _Drill(plan, listener, clock, metadata).run()


class _Drill:
    def __init__(
        self, plan: DrillPlan, listener: Listener, clock: Clock, metadata: Sequence[EC2MetadataService]
    ) -> None:
        self._plan = plan
        self._listener = listener
        self._clock = clock
        self._metadata = metadata

    def run(self) -> DrillResult:
        plan = self._plan
        baseline, launches = self._undisturbed("baseline", "Undisturbed training")
        paid = _paid(launches)
        if plan.check_determinism:
            again, _ = self._undisturbed("baseline-again", "Undisturbed training, once more")
            comparison = self._compare(baseline, again)
            if not comparison.identical:
                return self._result(baseline, again, comparison, [], _Interrupted([], 0.0), paid)
        schedule = self._schedule(baseline)
        interrupted, outcome = self._interrupted(schedule)
        return self._result(baseline, interrupted, self._compare(baseline, interrupted), schedule, outcome, paid)

    def _undisturbed(self, name: str, title: str) -> tuple[Journal, list[Launch]]:
        onlooker = Onlooker(self._listener, self._clock)
        engine = self._engine(name, price=self._plan.on_demand, max_starts=1, max_restarts=0)
        self._listener.phase(title)
        try:
            launches = engine.run(onlooker)
        except ChildError as error:
            raise self._explained(name, error) from error
        self._listener.phase_ended(_passed(launches))
        return self._journal(name), launches

    def _schedule(self, baseline: Journal) -> list[Strike]:
        first = baseline.state.commits[0].step
        until = baseline.state.finished_step or first
        line = build_timeline(baseline.entries, baseline.state)[-1]
        began = line.began_at + (line.startup_seconds or 0.0)
        seconds = max(0.0, (line.last_step_at or began) - began)
        return draw_schedule(
            seed=self._plan.seed,
            count=self._plan.interruptions,
            first_save=first,
            until=until,
            step_seconds=seconds / max(1, until),
            nodes=self._plan.layout.nodes,
        )

    def _interrupted(self, schedule: list[Strike]) -> tuple[Journal, _Interrupted]:
        striker = Striker(schedule, self._metadata, self._listener, self._clock)
        count = len(schedule)
        engine = self._engine(
            "interrupted", price=self._plan.spot, max_starts=count + 3, max_restarts=count + 3, no_progress=count + 5
        )
        self._listener.phase("Interrupted training")
        launches = engine.run(striker)
        self._listener.phase_ended(_passed(launches))
        journal = self._journal("interrupted")
        lines = build_timeline(journal.entries, journal.state, sightings(striker))
        return journal, _Interrupted(lines, _paid(launches), striker.made)

    def _compare(self, first: Journal, second: Journal) -> Comparison:
        self._listener.comparing()
        return compare_runs(first, second)

    def _result(
        self,
        baseline: Journal,
        other: Journal,
        comparison: Comparison,
        schedule: list[Strike],
        outcome: _Interrupted,
        paid: float,
    ) -> DrillResult:
        plan = self._plan
        idle = [made.strike for made in without_effect(outcome.made, other.state)]
        return DrillResult(
            seed=plan.seed,
            command=list(plan.command),
            layout=plan.layout,
            baseline_uri=baseline.store.uri,
            interrupted_uri=other.store.uri,
            schedule=schedule,
            attempts=outcome.timeline,
            comparison=comparison,
            on_demand=Cost(paid, plan.on_demand, plan.currency),
            spot=Cost(outcome.paid, plan.spot, plan.currency),
            lost_seconds=lost_seconds(outcome.timeline),
            missed=idle + schedule[len(outcome.made) :],
            deterministic=None if not plan.check_determinism else bool(schedule),
        )

    def _engine(
        self, name: str, *, price: float, max_starts: int, max_restarts: int, no_progress: int | None = None
    ) -> LocalGang:
        plan = self._plan
        settings = AgentSettings(
            uri=self._uri(name),
            every=plan.every,
            grace=plan.grace,
            pool="local",
            price=price,
            currency=plan.currency,
            max_restarts=max_restarts,
            no_progress_limit=no_progress,
        )
        environments = [self._environment(service) for service in self._metadata]
        return LocalGang(
            lambda: plan.layout.lay_out(plan.command, environments), settings, name=shlex.join(plan.command),
            logs=plan.logs, prefix=name, max_starts=max_starts, timeout=plan.timeout, clock=self._clock,
        )  # fmt: skip

    def _environment(self, metadata: EC2MetadataService) -> dict[str, str]:
        """Of one node."""
        return {
            **self._plan.environment,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.endpoint,
            "AWS_EC2_METADATA_DISABLED": "false",
            "UNBROKEN_NOTICE_POLL": _NOTICE_POLL,
        }

    def _uri(self, name: str) -> str:
        return f"{self._plan.store.rstrip('/')}/{name}"

    def _journal(self, name: str) -> Journal:
        return Journal.open(open_store(self._uri(name)), clock=self._clock)

    def _explained(self, name: str, error: ChildError) -> Exception:
        """A command that failed before it opened a run was most likely never meant to: say so."""
        if error.kind != "exit" or error.returncode not in (EXIT_FAILED, EXIT_CONFIG):
            return error
        try:
            self._journal(name)
        except NotFoundError:
            return _no_run(error.message, error.hint)
        return error


def _no_run(what: str, seen: str) -> ConfigError:
    return ConfigError(
        f"{what} and never opened an unbroken.Run", kind="no-run",
        hint=f"Only a training with an unbroken.Run in it can be drilled.\n{seen}".rstrip(),
    )  # fmt: skip


@dataclass(frozen=True)
class _Interrupted:
    """What is known after the second training. ``paid`` is in seconds of nodes."""

    timeline: list[AttemptLine]
    paid: float
    made: list[Made] = field(default_factory=list)


def _paid(launches: Sequence[Launch]) -> float:
    """Seconds for which nodes were held: from each start of an agent to its end."""
    return sum(launch.seconds for launch in launches)


def _passed(launches: Sequence[Launch]) -> float:
    """Seconds during which any node was held."""
    longest: dict[int, float] = {}
    for launch in launches:
        longest[launch.number] = max(launch.seconds, longest.get(launch.number, 0.0))
    return sum(longest.values())
