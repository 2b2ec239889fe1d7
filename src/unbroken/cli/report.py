"""``unbroken report``: where a run's hours and money went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unbroken.cli.engines import is_job_file
from unbroken.clock import format_duration, format_time

if TYPE_CHECKING:
    from unbroken.job import Job
    from unbroken.journal import Journal
    from unbroken.report.achieved import Achieved, OnDemand
    from unbroken.report.causes import Span
    from unbroken.report.interruptions import Interruption

_WIDEST = 120
"""Columns of the drawing where the terminal is wider."""
_MOST_DECISIONS = 30


@click.command(short_help="Say where a run's hours and money went.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
@click.option(
    "--on-demand-price", type=click.FloatRange(min=0, min_open=True), metavar="PRICE",
    help="Of an hour on demand, in the currency of the attempts' prices.",
)  # fmt: skip
@click.option("--job", "job_file", type=click.Path(path_type=Path), metavar="FILE", help="Job file with the prices.")
@click.argument("uri", metavar="URI|JOB")
def report(uri: str, job_file: Path | None, on_demand_price: float | None, as_json: bool) -> None:
    """Say where the hours and the money of the run at URI went, by its journal: each cause, goodput, savings against
    on-demand, the attempts over time, each interruption in seconds, and what a policy decided.

    What the journal does not tell is said to be unknown.
    """
    from unbroken.cli.reading import open_run, print_json
    from unbroken.report.achieved import achieved_by
    from unbroken.report.causes import spans_of
    from unbroken.report.interruptions import interruptions_of

    job = _job(Path(uri) if is_job_file(uri) and job_file is None else job_file)
    journal = open_run(job.run if job is not None and is_job_file(uri) else uri)
    spans = spans_of(journal.entries, journal.state)
    achieved = achieved_by(spans, _on_demand(on_demand_price, job))
    cuts = interruptions_of(journal.entries, journal.state)
    if as_json:
        print_json(_document(journal, spans, achieved, cuts))
    else:
        _print(journal, spans, achieved, cuts)


def _job(file: Path | None) -> Job | None:
    if file is None:
        return None
    from unbroken.job import load_job

    return load_job(file)


def _on_demand(price: float | None, job: Job | None) -> OnDemand | None:
    from unbroken.report.achieved import OnDemand

    if price is not None:
        return OnDemand(price)
    if job is not None and job.prices is not None:
        return OnDemand(job.prices.on_demand, job.currency)
    return None


def _document(journal: Journal, spans: list[Span], achieved: Achieved, cuts: list[Interruption]) -> dict[str, Any]:
    import msgspec

    from unbroken.report.causes import MICROS, amounts_of, by_cause
    from unbroken.report.interruptions import DURATIONS

    begun, ended = (spans[0].begin, spans[-1].end) if spans else (None, None)
    return {
        "uri": journal.store.uri,
        "run": journal.info.run,
        "finished_step": journal.state.finished_step,
        "begun_at": None if begun is None else begun / MICROS,
        "last_entry_at": None if ended is None else ended / MICROS,
        "seconds": 0.0 if begun is None or ended is None else (ended - begun) / MICROS,
        "causes": [
            {
                "cause": line.cause,
                "seconds": line.micros / MICROS,
                "paid_seconds": line.paid / MICROS,
                "costs": _costs(line.amounts),
            }
            for line in by_cause(spans)
        ],
        "costs": _costs(amounts_of(spans)),
        **msgspec.to_builtins(achieved),
        "timeline": [
            {
                "attempt": span.attempt or None,
                "cause": span.cause,
                "begin": span.begin / MICROS,
                "end": span.end / MICROS,
                "paid": span.paid,
                "price": span.price,
                "currency": span.currency,
            }
            for span in spans
        ],
        "interruptions": [
            {**msgspec.to_builtins(cut), **{name: getattr(cut, name) for name in DURATIONS}} for cut in cuts
        ],
        "decisions": [{"at": entry.at, **msgspec.to_builtins(entry.event)} for entry in journal.state.decisions],
    }


def _costs(amounts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"amount": float(amount), "currency": currency} for currency, amount in sorted(amounts.items())]


def _print(journal: Journal, spans: list[Span], achieved: Achieved, cuts: list[Interruption]) -> None:
    from unbroken.cli.report_tables import causes_table, decisions_table, interruptions_table
    from unbroken.report.gantt import gantt
    from unbroken.report.text import make_console

    console = make_console()

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=False)

    say(f"run {journal.store.uri}")
    decisions = journal.state.decisions
    if not spans:
        say("no attempt has trained for any time: there is nothing to account for")
    else:
        begun = spans[0].begin / 1e6
        lasted = format_duration((spans[-1].end - spans[0].begin) / 1e6)
        say(f"  {lasted} from {format_time(begun)} to the last entry of its journal")
        console.print(causes_table(spans))
        for line in _achieved_lines(achieved):
            say(line)
        say("")
        for line in gantt(spans, min(console.width, _WIDEST)):
            say(line)
    if cuts:
        say("\nInterruptions: each duration begins where the one before it ends")
        console.print(interruptions_table(cuts))
    if decisions:
        newest = decisions[-_MOST_DECISIONS:]
        say(f"\nDecisions: {len(decisions)}" + (f", the last {len(newest)}" if newest != decisions else ""))
        console.print(decisions_table(newest, spans[0].begin / 1e6 if spans else decisions[0].at))


def _achieved_lines(achieved: Achieved) -> list[str]:
    from unbroken.report.cost import money

    lines = []
    useful, paid = format_duration(achieved.useful_seconds), format_duration(achieved.paid_seconds)
    if achieved.goodput is None:
        lines.append("goodput: unknown, no paid time is on record")
    else:
        most = "at most " if achieved.silent_seconds else ""
        lines.append(f"goodput: {most}{achieved.goodput:.1%} ({useful} of work that counts / {paid} paid)")
    if achieved.silent_seconds:
        silent = format_duration(achieved.silent_seconds)
        lines.append(f"  no word of {silent}: lost training or waiting, counted as not paid")
    if achieved.unpriced_seconds:
        lines.append(f"  {format_duration(achieved.unpriced_seconds)} of the paid time have no price in the journal")
    if achieved.saved is None or achieved.saved_share is None:
        lines.append("savings against on-demand: unknown")
        return [*lines, *(f"  {why}" for why in achieved.unknown)]
    needed = format_duration(achieved.on_demand_seconds)
    alone = money(achieved.on_demand_amount or 0.0, achieved.currency)
    saved = money(achieved.saved, achieved.currency)
    most = "at most " if achieved.silent_seconds else ""
    lines.append(f"savings against on-demand: {most}{achieved.saved_share:.1%}, {saved}")
    return [*lines, f"  there: {needed}, {alone} for the same work, one start and no saves"]
