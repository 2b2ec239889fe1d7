"""``unbroken plan``: what a job will cost and when it will be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unbroken.clock import SYSTEM_CLOCK, format_duration, parse_duration
from unbroken.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from unbroken.job import Job
    from unbroken.plan.inputs import Inputs
    from unbroken.plan.scenarios import Row

_DURATIONS = ("stall", "upload", "restart", "wait", "blocking")


@click.command(short_help="Say what a job will cost and when it will be done.")
@click.argument("job", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--hours", type=float, help="Training without interruption; the job's expected_hours by default.")
@click.option("--deadline", help="As a duration from the launch; the job's by default.")
@click.option("--hazard", type=click.FloatRange(min=0), help="Interruptions of the run per hour.")
@click.option("--notice-success", type=click.FloatRange(0.0, 1.0), help="Chance that a save at a notice is in time.")
@click.option("--every", help="Between saves; the job's, or the best, by default.")
@click.option("--stall", help="What the loop loses to a save.")
@click.option("--upload", help="Until a save is durable.")
@click.option("--restart", help="Paid, from a machine to its first step.")
@click.option("--wait", help="For a machine, before each start.")
@click.option("--blocking", help="How long the usual save stops the training.")
@click.option(
    "--trainings", type=click.IntRange(100), default=20_000, show_default=True, help="That are drawn for each row."
)
@click.option("--seed", default=0, show_default=True, help="Of what is drawn at random.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
def plan(job: Path, as_json: bool, **options: Any) -> None:
    """Say what JOB will cost on demand and on spot, with checkpoints and without, and when it will be done.

    What is not given is measured by the job's run, if that has begun, or assumed.
    """
    try:
        import numpy  # noqa: F401 - said here, once, in words
    except ImportError as error:
        hint = "pip install 'unbroken[plan]'"
        raise ConfigError("planning needs numpy, which is not installed", kind="extra", hint=hint) from error
    from unbroken.job import load_job
    from unbroken.plan.inputs import inputs_of
    from unbroken.plan.scenarios import plan_rows, ways_of

    loaded = load_job(job)
    given = {name: parse_duration(options[name]) / 3600.0 for name in _DURATIONS if options[name]}
    given |= {name: options[name] for name in ("hazard", "notice_success") if options[name] is not None}
    inputs = inputs_of(given, _state(loaded))
    work = _hours(loaded, options["hours"])
    interval, most = _cadence(loaded, options["every"], work)
    ways = ways_of(work, inputs, *_prices(loaded), interval, most)
    deadline = _deadline(loaded, options["deadline"])
    rows = plan_rows(ways, deadline, options["trainings"], options["seed"])
    if as_json:
        from unbroken.cli.reading import print_json

        print_json(_document(inputs, rows, deadline, loaded.currency))
    else:
        _print(inputs, rows, deadline, loaded.currency)


def _state(job: Job) -> Any:
    from unbroken.cli.reading import open_run

    try:
        return open_run(job.run).state
    except NotFoundError:
        return None


def _hours(job: Job, hours: float | None) -> float:
    found = hours or job.expected_hours
    if not found:
        raise ConfigError("the job has no expected_hours", kind="job", hint="Write expected_hours: 48, or say --hours")
    return found


def _cadence(job: Job, text: str | None, work: float) -> tuple[float | None, float]:
    """(hours between saves where they are said, the most for the best interval)"""
    from unbroken.every import parse_every

    found = parse_every(text or job.every or "auto")
    if found.seconds is not None:
        return found.seconds / 3600.0, math.inf
    if found.steps is not None:
        if job.steps is None:
            hint = "Write steps: 100000 into the job, or say --every as a duration"
            raise ConfigError(f"how long {found.steps} steps take is not known", kind="every", hint=hint)
        return work * min(1.0, found.steps / job.steps), math.inf
    # Without a word about the largest loss the best interval is the best.
    said = "loss" in (text or job.every or "")
    return None, found.auto.loss / 3600.0 if said and found.auto is not None else math.inf


def _deadline(job: Job, text: str | None) -> float | None:
    """Hours from the launch, which for a moment is taken to be now."""
    if text:
        return parse_duration(text) / 3600.0
    at = job.deadline_at(now := SYSTEM_CLOCK.now())
    return None if at is None else max(0.0, at - now) / 3600.0


def _prices(job: Job) -> tuple[list[tuple[str, float]], tuple[str, float]]:
    """(spot pools, on-demand), with the prices of all nodes."""
    if job.prices is None and not (job.pools and all(pool.price for pool in job.pools)):
        raise ConfigError("the job has no prices", kind="job", hint="Write prices: {on_demand: 25.0, spot: 8.33}")
    found: dict[str, list[tuple[str, float]]] = {"spot": [], "on-demand": []}
    for pool in job.pools:
        found[pool.market].append((str(pool), (job.price_of(pool) or 0.0) * job.ranks.nodes))
    if job.prices is not None:
        found["spot"] = found["spot"] or [("spot", job.prices.spot * job.ranks.nodes)]
        found["on-demand"] = found["on-demand"] or [("on-demand", job.prices.on_demand * job.ranks.nodes)]
    if not found["on-demand"]:
        raise ConfigError("the job has no on-demand price", kind="job", hint="Write prices: {on_demand: 25, spot: 8}")
    return found["spot"], min(found["on-demand"], key=lambda each: each[1])


def _plain(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _document(inputs: Inputs, rows: Sequence[Row], deadline: float | None, currency: str) -> dict[str, Any]:
    from dataclasses import asdict

    from unbroken.plan.scenarios import verdicts

    built = [
        {
            "scenario": row.way.scenario, "pool": row.way.pool, "price": row.way.setting.price,
            "interval": _plain(row.way.setting.interval), "saves_made": row.way.setting.saves,
            **{name: _plain(value) for name, value in asdict(row.forecast).items()},
            "cost_p5": _plain(row.cost_p5), "cost_p95": _plain(row.cost_p95), "finish_p5": _plain(row.finish_p5),
            "finish_p95": _plain(row.finish_p95), "rework_p95": _plain(row.lost_p95), "on_time": row.on_time,
            "first_try": row.first_try,
        }
        for row in rows
    ]  # fmt: skip
    named = {name: {"value": each["value"], "source": each["source"]} for name, each in asdict(inputs).items()}
    return {
        "currency": currency, "deadline_hours": deadline, "inputs": named, "rows": built, "warnings": verdicts(rows)
    }  # fmt: skip


def _print(inputs: Inputs, rows: Sequence[Row], deadline: float | None, currency: str) -> None:
    from unbroken.plan.scenarios import verdicts
    from unbroken.report.text import make_console, make_table

    console = make_console()
    numbers = ["cost", "p5 to p95", "finish", "p95", "lost", "saves"] + (["on time"] if deadline is not None else [])
    table = make_table("", "pool", *numbers, right=tuple(numbers))
    parts = make_table("hours of", "pool", "work", "saves", "rework", "restarts", "waiting", "saved every",
                       right=("work", "saves", "rework", "restarts", "waiting", "saved every"))  # fmt: skip
    for row in rows:
        found, setting = row.forecast, row.way.setting
        on_time = [] if row.on_time is None else [f"{row.on_time:.0%}"]
        table.add_row(
            row.way.scenario, row.way.pool, _money(found.cost), f"{_money(row.cost_p5)} to {_money(row.cost_p95)}",
            _hour(found.finish), _hour(row.finish_p95), _hour(found.rework), str(setting.saves), *on_time,
        )  # fmt: skip
        every = "-" if math.isinf(setting.interval) or not setting.saves else format_duration(setting.interval * 3600.0)
        parts.add_row(
            row.way.scenario, row.way.pool,
            *(_hour(part) for part in (found.work, found.saves, found.rework, found.restarts, found.waiting)), every,
        )  # fmt: skip
    console.print(f"costs in {currency}, hours since the launch", markup=False, highlight=False)
    console.print(table)
    console.print(parts)
    for name, each in vars(inputs).items():
        shown = f"{each.value:.3g}" if name in ("hazard", "notice_success") else format_duration(each.value * 3600.0)
        console.print(f"{name.replace('_', ' ')}: {shown} ({each.source})", markup=False, highlight=False)
    for text in verdicts(rows):
        console.print(text, markup=False, highlight=False)


def _money(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "endless"


def _hour(value: float) -> str:
    return f"{value:.2f} h" if math.isfinite(value) else "never"
