"""``unbroken stop``: have a job saved and ended."""

from __future__ import annotations

from pathlib import Path

import click

from unbroken.cli.engines import document, engine_for, engine_option, print_standing
from unbroken.clock import parse_duration
from unbroken.errors import NotFoundError


@click.command(short_help="Have a job save and end; launch goes on with it.")
@click.argument("job", type=click.Path(dir_okay=False, path_type=Path))
@engine_option
@click.option("--timeout", default="5min", show_default=True, help="How long to wait for the end.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
def stop(job: Path, engine: str, timeout: str, as_json: bool) -> None:
    """Have JOB saved and ended, and not started again. `unbroken launch` goes on with it."""
    from unbroken.cli.reading import print_json
    from unbroken.job import load_job
    from unbroken.report.text import make_console

    loaded = load_job(job)
    standing = engine_for(engine, loaded).stop(loaded.name, timeout=parse_duration(timeout))
    step = _durable_step(loaded.run)
    if as_json:
        print_json({**document(standing), "durable_step": step})
        return
    print_standing(make_console(), standing)
    click.echo("no checkpoint is durable yet" if step is None else f"last durable step: {step}")


def _durable_step(uri: str) -> int | None:
    from unbroken.cli.reading import open_run

    try:
        checkpoints = open_run(uri).state.checkpoints
    except NotFoundError:
        return None
    return checkpoints[-1].step if checkpoints else None
