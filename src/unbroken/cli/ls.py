"""``unbroken ls``: list a run's checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from unbroken.clock import SYSTEM_CLOCK, format_duration

if TYPE_CHECKING:
    from unbroken.journal import Journal


@click.command(short_help="List a run's checkpoints.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
@click.argument("uri")
def ls(uri: str, as_json: bool) -> None:
    """List the checkpoints kept of the run at URI, oldest commit first."""
    from unbroken.cli.reading import open_run, print_json

    journal = open_run(uri)
    rows = _rows(journal, SYSTEM_CLOCK.now())
    if as_json:
        print_json({"uri": journal.store.uri, "finished_step": journal.state.finished_step, "checkpoints": rows})
    else:
        _print(rows)


def _rows(journal: Journal, now: float) -> list[dict[str, Any]]:
    state = journal.state
    steps = {commit.event.manifest: commit.step for commit in state.commits}
    newest = state.checkpoints[-1].n if state.checkpoints else 0
    return [
        {
            "step": record.step,
            "attempt": record.attempt,
            "at": record.at,
            "age": max(0.0, now - record.at),
            "size": record.event.size,
            "written": record.event.written,
            "parent_step": steps.get(record.event.parent),
            "stall": record.event.stall,
            "seconds": record.event.seconds,
            "manifest": record.event.manifest,
            "latest": record.n == newest,
            "final": record.n == newest and record.step == state.finished_step,
        }
        for record in state.checkpoints
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    from unbroken.report.text import format_size, make_console, make_table

    numbers = ("step", "attempt", "age", "size", "written", "parent")
    table = make_table(*numbers, "", right=numbers)
    for row in rows:
        table.add_row(
            str(row["step"]),
            str(row["attempt"]),
            format_duration(row["age"]),
            format_size(row["size"]),
            format_size(row["written"]),
            "-" if row["parent_step"] is None else str(row["parent_step"]),
            "final" if row["final"] else "latest" if row["latest"] else "",
        )
    console = make_console()
    console.print(table if rows else "no checkpoint yet")
