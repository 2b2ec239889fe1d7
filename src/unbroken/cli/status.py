"""``unbroken status``: how a run stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unbroken.cli.engines import document, engine_for, engine_option, is_job_file, print_standing
from unbroken.clock import SYSTEM_CLOCK, format_duration, format_time
from unbroken.errors import NotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from unbroken.report import RunSummary

_STATES = {
    "new": "no attempt has begun",
    "imported": "it holds an imported state; no training has begun",
    "open": "its newest attempt has not ended (or died without a word)",
    "finished": "finished",
    "interrupted": "interrupted; start it again and it goes on",
    "crashed": "its newest attempt crashed",
    "failed": "its newest attempt failed",
    "left": "its loop was left early",
    "no word": "its newest attempt was replaced and never said how it ended",
    "stopped-no-progress": "stopped: attempt after attempt committed nothing",
}


@click.command(short_help="Say how a run stands: attempts, steps, last durable checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
@engine_option
@click.argument("uri", metavar="URI|JOB")
def status(uri: str, engine: str, as_json: bool) -> None:
    """Say how the run at URI stands, by its journal; of a JOB file also how its engine has it."""
    from unbroken.cli.reading import open_run, print_json
    from unbroken.report import cost_of, summarise
    from unbroken.report.text import make_console

    standing = None
    if is_job_file(uri):
        from unbroken.job import load_job

        job = load_job(Path(uri))
        standing, uri = engine_for(engine, job).status(job.name), job.run
        if not as_json:
            print_standing(make_console(), standing)
    try:
        journal = open_run(uri)
    except NotFoundError:
        if standing is None:
            raise
        if as_json:
            print_json({"job": document(standing)})
        else:
            click.echo(f"run {uri}: no attempt has begun")
        return
    info = journal.info
    summary = summarise(
        journal.store.uri, info.run, info.created_at, journal.entries, journal.state, SYSTEM_CLOCK.now()
    )
    if as_json:
        built = _document(summary, [(cost.amount, cost.currency) for cost in cost_of(summary.attempts)])
        print_json(built if standing is None else {**built, "job": document(standing)})
    else:
        _print(make_console(), summary, [str(cost) for cost in cost_of(summary.attempts)])


def _document(summary: RunSummary, costs: list[tuple[float, str]]) -> dict[str, Any]:
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(summary)
    for line, built in zip(summary.attempts, document["attempts"], strict=True):
        built.update(seconds=line.seconds, lost_seconds=line.lost_seconds)
    document["costs"] = [{"amount": amount, "currency": currency} for amount, currency in costs]
    return document


def _print(console: Console, summary: RunSummary, costs: list[str]) -> None:
    from unbroken.report.text import attempts_table, format_size

    def say(text: str) -> None:
        console.print(text, markup=False)

    say(f"run {summary.uri}: {_STATES.get(summary.state, summary.state)}")
    say(f"  begun {format_time(summary.created_at)}, attempts: {len(summary.attempts)}")
    if summary.durable is None:
        say("  no checkpoint is durable yet")
    else:
        durable = summary.durable
        age = format_duration(durable.age)
        say(
            f"  last durable step: {durable.step}, {age} ago, by attempt {durable.attempt}, {format_size(durable.size)}"
        )
    if summary.state != "finished" and summary.attempts:
        owner = summary.attempts[-1]
        fruitless = summary.attempts_without_progress
        say(f"  owner: attempt {owner.attempt} on {owner.host}; attempts in a row without progress: {fruitless}")
    if summary.steps_repeated or summary.lost_seconds:
        lost = format_duration(summary.lost_seconds)
        say(f"  interruptions cost: {summary.steps_repeated} steps done twice, {lost} lost")
    if costs:
        say(f"  paid so far: {' + '.join(costs)}")
    if summary.attempts:
        console.print(attempts_table(summary.attempts))
    for notice in summary.notices:
        deadline = format_time(notice.deadline)
        say(f"notice to attempt {notice.attempt} from {notice.source}: {notice.reason} (deadline {deadline})")
    for remark in summary.remarks:
        say(f"{remark.topic}, attempt {remark.attempt}, {format_time(remark.at)}: {remark.text}")
    if summary.ignored_entries:
        say(f"{summary.ignored_entries} entries of replaced attempts are ignored")
