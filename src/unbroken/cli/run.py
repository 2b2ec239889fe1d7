"""``unbroken run``: start a training command here and keep it going."""

from __future__ import annotations

import os
from pathlib import Path

import click

from unbroken.agent.options import AgentOptions
from unbroken.errors import ConfigError
from unbroken.notice.choice import NOTICES_VARIABLE, parse_choice
from unbroken.notice.grace import grace_from

_EPILOG = """Exit codes: 0 the run is finished; 75 interrupted, start it again; 1 failed; 78 mend the command or its
settings first; others name an error (10 not found, 11 another attempt owns the run, 12 damaged, 13 newer format,
14 does not fit the model, 77 access denied)."""

_JOB = "unbroken.job"
"""Key of the job file's contents in the context of the command line."""


def _from_job(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """What the job file says becomes what options that are not given say."""
    if path is not None and not ctx.resilient_parsing:
        from unbroken.job import agent_settings, load_job

        job = ctx.meta[_JOB] = load_job(path)
        ctx.default_map = agent_settings(job)
    return path


@click.command(
    epilog=_EPILOG,
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    short_help="Start a training command here and keep it going.",
)
@click.option(
    "--job", type=click.Path(path_type=Path), metavar="FILE", is_eager=True, callback=_from_job, expose_value=False,
    help="Job file: the command, and what options that are not given say.",
)  # fmt: skip
@click.option("--uri", default="", metavar="URI", help="Run URI; outranks the one in the script.")
@click.option("--every", default="", metavar="CADENCE", help="How often to save; outranks the script's.")
@click.option("--keep", default="", metavar="RULE", help="Which checkpoints to keep, as last=3; outranks the script's.")
@click.option(
    "--grace",
    metavar="SECONDS",
    help="From a stop signal to the kill: what your platform gives (UNBROKEN_GRACE; default 30).",
)
@click.option(
    "--notices", default="", metavar="LIST",
    help="Who is heard of interruptions: ec2,gcp or -azure (UNBROKEN_NOTICES; default all).",
)  # fmt: skip
@click.option(
    "--no-progress-limit", type=click.IntRange(1), default=AgentOptions.no_progress_limit, show_default=True,
    metavar="N", help="Stop after N attempts in a row that committed no checkpoint.",
)  # fmt: skip
@click.option(
    "--max-restarts", type=click.IntRange(0), default=AgentOptions.max_restarts, show_default=True, metavar="N",
    help="Restart a crashed command in place at most N times.",
)  # fmt: skip
@click.option("--pool", default="", help="Where this machine comes from, for the journal: type/zone/market.")
@click.option("--price", type=click.FloatRange(0), help="What this machine costs an hour, for the journal.")
@click.option("--currency", default="", help="Currency of --price, such as USD.")
@click.option(
    "--runtime-dir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Folder for the agent's socket and agent.json; by default a temporary one.",
)  # fmt: skip
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    uri: str,
    every: str,
    keep: str,
    grace: str | None,
    notices: str,
    no_progress_limit: int,
    max_restarts: int,
    pool: str,
    price: float | None,
    currency: str,
    runtime_dir: Path | None,
    command: tuple[str, ...],
) -> int:
    """Start COMMAND here and keep it going.

    Hears SIGTERM and the cloud's notices, has the trainers save before the deadline, restarts them when they crash, and
    leaves with a code that says how the run stands.

    Example: unbroken run --grace 100 -- python train.py
    """
    if _JOB in ctx.meta:
        from unbroken.job import agent_environment, node_command

        os.environ.update(agent_environment(ctx.meta[_JOB]))
        command = command or tuple(node_command(ctx.meta[_JOB]))
    if not command:
        raise ConfigError(
            "no command was given", kind="command", hint="Write it after two dashes: unbroken run -- python train.py"
        )
    if keep:
        from unbroken.checkpoint.retention_text import parse_keep

        parse_keep(keep)
    if notices:
        parse_choice(notices, "--notices")
        os.environ[NOTICES_VARIABLE] = notices  # also for agents that the command may start
    options = AgentOptions(
        uri=uri,
        every=every,
        keep=keep,
        grace=grace_from(grace),
        no_progress_limit=no_progress_limit,
        max_restarts=max_restarts,
        pool=pool,
        price=price,
        currency=currency,
        runtime_dir=runtime_dir,
    )
    from unbroken.agent.supervisor import supervise

    return supervise(options, command)
