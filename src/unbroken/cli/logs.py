"""``unbroken logs``: what a job's training prints."""

from __future__ import annotations

from pathlib import Path

import click

from unbroken.cli.engines import engine_for, engine_option


@click.command(short_help="Print what a job's training printed, over all of its starts.")
@click.argument("job", type=click.Path(dir_okay=False, path_type=Path))
@engine_option
@click.option("--node", type=click.IntRange(0), default=0, show_default=True, help="Of the training.")
@click.option("--follow", "-f", is_flag=True, help="Go on, over interruptions, until the job ends.")
def logs(job: Path, engine: str, node: int, follow: bool) -> int:
    """Print what the training of JOB printed, the oldest start that is still known first."""
    from unbroken.job import load_job

    loaded = load_job(job)
    try:
        for line in engine_for(engine, loaded).logs(loaded.name, node=node, follow=follow):
            click.echo(line)
    except KeyboardInterrupt:
        return 130
    return 0
