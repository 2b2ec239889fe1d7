"""``unbroken simulate``: what each policy would have cost on recorded availability."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unbroken.clock import parse_duration
from unbroken.errors import ConfigError

if TYPE_CHECKING:
    from unbroken.job import Job
    from unbroken.simulate.ranking import Choice, Row
    from unbroken.simulate.study import Piece, Question
    from unbroken.simulate.trace import Trace

_BAR = 40


@click.command(short_help="Replay policies on recorded availability and pick the best.")
@click.argument("job", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--trace",
    "traces",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Recorded availability; repeat it.",
)
@click.option("--together", is_flag=True, help="The traces are pools at the same time, not worlds of their own.")
@click.option("--policy", "policies", multiple=True, help="Only these; repeat it. All by default.")
@click.option("--every", "cadences", multiple=True, help="Cadence: a duration, auto, or none; repeat it to compare.")
@click.option("--hours", type=float, help="Training without interruption; the job's expected_hours by default.")
@click.option("--deadline", help="As a duration; the job's by default.")
@click.option("--changeover", default="12min", show_default=True, help="From a start to the first step.")
@click.option("--longest-changeover", help="At worst; as --changeover by default.")
@click.option("--stall", default="2s", show_default=True, help="What the loop loses to a save.")
@click.option("--upload", default="90s", show_default=True, help="Until a save is durable.")
@click.option(
    "--notice-success",
    default=0.9,
    show_default=True,
    type=click.FloatRange(0.0, 1.0),
    help="Chance that a save at a notice is in time.",
)
@click.option(
    "--starts", default=400, show_default=True, type=click.IntRange(1), help="Runs for each policy and cadence."
)
@click.option(
    "--bound-starts",
    default=40,
    show_default=True,
    type=click.IntRange(0),
    help="Of them, compared with the omniscient.",
)
@click.option("--time-unit", type=click.Choice(["ms", "s", "h"]), help="Of the times in files of counts.")
@click.option("--processes", type=click.IntRange(1), help="As many as there are cores by default.")
@click.option("--seed", default=0, show_default=True, help="Of what is drawn at random.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
def simulate(job: Path, **options: Any) -> None:
    """Replay the training of JOB on recorded availability, from many starts, by each policy."""
    try:
        import numpy  # noqa: F401 - said here, once, in words
    except ImportError as error:
        hint = "pip install 'unbroken[plan]'"
        raise ConfigError("simulating needs numpy, which is not installed", kind="extra", hint=hint) from error
    from unbroken.job import load_job
    from unbroken.simulate.formats import read_trace
    from unbroken.simulate.ranking import bound_of, choose, rows_of

    loaded = load_job(job)
    traces = [read_trace(path, options["time_unit"]) for path in options["traces"]]
    question = _question(loaded, traces, options)
    pieces = _ask(question, options["processes"] or os.cpu_count() or 1, quiet=options["as_json"])
    rows = rows_of(question, pieces)
    choice, bound = choose(question, pieces, rows, options["seed"]), bound_of(pieces)
    if options["as_json"]:
        from unbroken.cli.reading import print_json

        print_json(_document(question, traces, rows, choice, bound, loaded.currency))
    else:
        _print(question, traces, rows, choice, bound, loaded.currency)


def _question(job: Job, traces: list[Trace], options: dict[str, Any]) -> Question:
    from unbroken.policy.choice import POLICIES
    from unbroken.policy.decision import Terms
    from unbroken.simulate.replay import World
    from unbroken.simulate.study import Question

    if job.prices is None:
        raise ConfigError("the job has no prices", kind="job", hint="Write prices: {on_demand: 25.0, spot: 8.33}")
    nodes, on_demand, spot = job.ranks.nodes, job.prices.on_demand, job.prices.spot
    groups = [traces] if options["together"] else [[trace] for trace in traces]
    worlds = [("+".join(each.name for each in group), World.of(group, on_demand, spot, nodes)) for group in groups]
    changeover = parse_duration(options["changeover"]) / 3600.0
    longest = parse_duration(options["longest_changeover"]) / 3600.0 if options["longest_changeover"] else changeover
    terms = Terms(
        work=_hours(job, options["hours"]),
        allowed=_allowed(job, options["deadline"]),
        changeover=changeover,
        longest_changeover=longest,
        on_demand_price=on_demand * nodes,
        spot_price=spot * nodes,
        period=max(world.gap for _, world in worlds),
    )
    return Question(
        worlds, terms, options["policies"] or POLICIES, _cadences(job, traces, options), options["starts"],
        options["bound_starts"], options["seed"],
    )  # fmt: skip


def _hours(job: Job, hours: float | None) -> float:
    found = hours or job.expected_hours
    if not found:
        raise ConfigError("the job has no expected_hours", kind="job", hint="Write expected_hours: 48, or say --hours")
    return found


def _allowed(job: Job, deadline: str | None) -> float:
    text = deadline or job.deadline
    if not text or (text[:4].isdigit() and text[4:5] == "-"):
        found = f"the deadline {text!r} is a moment" if text else "the job has no deadline"
        raise ConfigError(found, kind="job", hint="Say --deadline as a duration from a start, such as 60h")
    return parse_duration(text) / 3600.0


def _cadences(job: Job, traces: list[Trace], options: dict[str, Any]) -> dict[str, Any]:
    from unbroken.simulate.saving import NO_SAVES, Saving

    stall, upload = parse_duration(options["stall"]) / 3600.0, parse_duration(options["upload"]) / 3600.0
    texts = options["cadences"] or ([job.every] if job.every and not job.every.isdigit() else ["auto"])
    found = {}
    for text in texts:
        if text == "none":
            found[text] = NO_SAVES
            continue
        hours = _auto(traces, job.ranks.nodes, stall, options) if text.startswith("auto") else _duration(text) / 3600.0
        name = f"auto ({hours * 60.0:.0f}min)" if text.startswith("auto") else text
        found[name] = Saving(hours, stall, upload, options["notice_success"])
    return found


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ConfigError as error:
        hint = "A replay knows no steps: say --every as a duration, auto or none"
        raise ConfigError(error.message, kind=error.kind, hint=hint) from error


def _auto(traces: list[Trace], nodes: int, stall: float, options: dict[str, Any]) -> float:
    """The interval that loses the least, for the interruptions of these traces; at most 2 h and at least an upload."""
    from unbroken.policy.interval import best_interval
    from unbroken.policy.stays import Seen, stays_of

    seen = Seen()
    for trace in traces:
        seen.add(stays_of(trace.up(nodes).tolist(), trace.gap))
    lossy = (sum(seen.ends[True]) + 1.0) * (1.0 - options["notice_success"]) + 0.1
    mean = (sum(seen.hours[True]) + 1.0) / lossy
    return min(2.0, max(best_interval(stall, mean), parse_duration(options["upload"]) / 3600.0))


def _ask(question: Question, processes: int, *, quiet: bool) -> list[Piece]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from unbroken.simulate.study import ask

    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("")
        return ask(question, processes, lambda done, all_: progress.update(task, completed=done, total=all_))


def _document(
    question: Question, traces: list[Trace], rows: list[Row], choice: Choice, bound: float, currency: str
) -> dict[str, Any]:
    import dataclasses
    import math

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    built = [{key: plain(value) for key, value in dataclasses.asdict(row).items()} for row in rows]
    return {
        "traces": [{"name": trace.name, "form": trace.form, "hours": trace.hours} for trace in traces],
        "hours": question.terms.work,
        "deadline_hours": question.terms.allowed,
        "feasible": question.terms.feasible,
        "currency": currency,
        "omniscient": plain(bound),
        "rows": built,
        "best": {
            "policy": choice.row.policy,
            "cadence": choice.row.cadence,
            "sure": choice.sure,
            "runner_up": choice.runner_up.policy if choice.runner_up else None,
            "runner_up_cadence": choice.runner_up.cadence if choice.runner_up else None,
            "saves": [plain(value) for value in choice.saves],
            "blocks": choice.blocks,
        },
    }


def _print(
    question: Question, traces: list[Trace], rows: list[Row], choice: Choice, bound: float, currency: str
) -> None:
    from unbroken.report.text import make_console

    console = make_console()
    terms = question.terms
    for trace in traces:
        console.print(f"{trace.name}: {trace.hours:.0f} h, {trace.form}", markup=False, highlight=False)
    console.print(
        f"{terms.work:g} h of training in {terms.allowed:g} h, {rows[0].runs} starts; costs in {currency}",
        highlight=False,
    )
    if not terms.feasible:
        console.print("on-demand alone cannot promise this deadline: misses are to be expected", highlight=False)
    console.print(_table(rows, bound))
    console.print("cost: ─ p5 to p95, ● mean, │ omniscient", highlight=False)
    for line in _plot(rows, bound):
        console.print(line, markup=False, highlight=False)
    best, other = choice.row, choice.runner_up
    found = f"best: {best.policy}, every {best.cadence}"
    resampled = f"cheapest in {choice.sure:.0%} of resamples of {choice.blocks} blocks"
    console.print(f"{found}; {resampled}", markup=False, highlight=False)
    if other is not None:
        low, high = choice.saves
        text = f"against {other.policy}, every {other.cadence}, it saves {low:+.1%} to {high:+.1%} (90 % of resamples)"
        console.print(text, markup=False, highlight=False)
    if choice.blocks < 10:
        console.print(
            "few blocks: the traces are short for this deadline, and the choice may be chance", highlight=False
        )


def _table(rows: list[Row], bound: float) -> Any:
    import math

    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("policy", "every"):
        table.add_column(title, no_wrap=True)
    for title in ("cost", "p95", "finish h", "misses", "spot", "lost h", "regret"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.policy, row.cadence, f"{row.cost:.2f}", f"{row.cost_p95:.2f}", _number(row.finish),
            f"{row.misses}/{row.runs}", f"{row.spot_share:.0%}", f"{row.lost:.2f}",
            "-" if math.isnan(row.regret) else f"{row.regret:.1%}",
        )  # fmt: skip
    if not math.isnan(bound):
        table.add_row("omniscient", "-", f"{bound:.2f}")
    return table


def _plot(rows: list[Row], bound: float) -> Iterator[str]:
    """Cost: a line from p5 to p95 with the mean on it, for each row, and the omniscient's mean across."""
    most = max(row.cost_p95 for row in rows) or 1.0
    several = len({row.cadence for row in rows}) > 1
    names = [f"{row.policy} {row.cadence}" if several else row.policy for row in rows]
    width = max(len(name) for name in names)
    for name, row in zip(names, rows, strict=True):
        yield f"{name:<{width}} {_bar(row, most, bound)}"
    yield f"{'':<{width}} 0{most:>{_BAR}.2f}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < float("inf") else "never"


def _bar(row: Row, most: float, bound: float) -> str:
    """A line from p5 to p95 with the mean on it, and the mean of the omniscient as a bar across."""
    cells = [" "] * (_BAR + 1)
    low, mean, high = (round(value / most * _BAR) for value in (row.cost_p5, row.cost, row.cost_p95))
    if bound == bound:
        cells[min(_BAR, round(bound / most * _BAR))] = "│"
    cells[low : high + 1] = "─" * (high - low + 1)
    cells[min(_BAR, mean)] = "●"
    return "".join(cells).rstrip()
