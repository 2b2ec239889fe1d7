"""``unbroken verify``: read every byte of checkpoints again and check it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from unbroken.errors import ConfigError, DamagedError

if TYPE_CHECKING:
    from rich.console import Console

    from unbroken.checkpoint import Verification
    from unbroken.journal import CheckpointRecord, Journal

_EPILOG = "Exit codes: 0 all is sound; 10 nothing is there; 12 something is damaged; 74 the storage failed."


@click.command(epilog=_EPILOG, short_help="Read every byte of a run's checkpoints again and check it.")
@click.option("--step", type=click.IntRange(0), help="Only the checkpoint of this step.")
@click.option("--all", "everything", is_flag=True, help="Every kept checkpoint; this is the default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
@click.argument("uri")
def verify(uri: str, step: int | None, everything: bool, as_json: bool) -> None:
    """Read every byte of the checkpoints of the run at URI again, and compare it with its digest."""
    from unbroken.checkpoint import verify_checkpoint
    from unbroken.cli.reading import kept_checkpoints, open_run, print_json
    from unbroken.report.text import make_console

    if everything and step is not None:
        raise ConfigError("--all and --step exclude each other", kind="options")
    journal = open_run(uri)
    console = make_console()
    found = []
    for record in kept_checkpoints(journal, step):
        result = verify_checkpoint(journal.store, record)
        if result.problems and _retired_meanwhile(journal, record):
            continue
        found.append((record.attempt, result))
        if not as_json:
            _print(console, found[-1][1])
    if as_json:
        print_json(_document(journal.store.uri, found))
    damaged = [one.step for _, one in found if one.problems]
    if damaged:
        steps = ", ".join(map(str, damaged))
        raise DamagedError(
            f"{len(damaged)} of {len(found)} checkpoints of {journal.store.uri} are damaged (step {steps})",
            kind="verify", hint="A run passes over them and resumes from the newest sound one",
        )  # fmt: skip


def _retired_meanwhile(journal: Journal, record: CheckpointRecord) -> bool:
    """Whether the checkpoint was given up since the journal was read: then its objects are missing rightly."""
    journal.refresh()
    return all(kept.event.manifest != record.event.manifest for kept in journal.state.checkpoints)


def _document(uri: str, found: list[tuple[int, Verification]]) -> dict[str, Any]:
    return {
        "uri": uri,
        "sound": not any(one.problems for _, one in found),
        "checkpoints": [
            {
                "step": one.step,
                "attempt": attempt,
                "sound": not one.problems,
                "tensors": one.tensors,
                "bytes": one.bytes,
                "problems": one.problems,
            }
            for attempt, one in found
        ],
    }


def _print(console: Console, one: Verification) -> None:
    from unbroken.report.text import format_size

    read = f"{one.tensors} tensors, {format_size(one.bytes)} read"
    if not one.problems:
        console.print(f"step {one.step}: [green]sound[/green] ({read})")
        return
    console.print(f"step {one.step}: [red]damaged[/red] ({read})")
    for problem in one.problems:
        console.print(f"  {problem}", markup=False)
