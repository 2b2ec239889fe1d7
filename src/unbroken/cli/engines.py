"""Which engine a verb speaks to, and how a job stands in words."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unbroken.clock import format_duration
from unbroken.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from unbroken.engine.face import Engine, Place, Standing
    from unbroken.job import Job

_EXTRAS = {"local": "", "kubernetes": "kubernetes", "ec2": "aws"}
ENGINES = [name for name in _EXTRAS if find_spec(f"unbroken.engine.{name}") is not None]

engine_option = click.option(
    "--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Who runs the job."
)


def engine_for(name: str, job: Job) -> Engine:
    """The engine of that name, set up for this job.

    Raises:
        ConfigError: what it needs is not installed, or not set up.
    """
    try:
        module = import_module(f"unbroken.engine.{name}")
    except ImportError as error:
        raise ConfigError(
            f"the engine {name} needs {error.name}, which is not installed", kind="extra",
            hint=f"pip install 'unbroken[{_EXTRAS[name]}]'",
        ) from error  # fmt: skip
    engine: Engine = module.open_engine(job)
    return engine


def is_job_file(text: str) -> bool:
    """Whether an argument means a job file, and not the URI of a run."""
    return "://" not in text and (text.endswith((".yaml", ".yml", ".json")) or Path(text).is_file())


def document(standing: Standing) -> dict[str, Any]:
    """For ``--json``."""
    from dataclasses import asdict

    return {**asdict(standing), "state": str(standing.state)}


def print_standing(console: Console, standing: Standing) -> None:
    """The job in a line, and its places below."""
    from unbroken.report.text import make_table

    reason = f": {standing.reason}" if standing.reason else ""
    console.print(f"job {standing.name}: {standing.state} ({standing.engine}, {standing.where}){reason}", markup=False)
    if not standing.places:
        return
    began = [place.began_at for place in standing.places if place.began_at is not None]
    table = make_table("place", "pool", "host", "began", "state", right=("began",))
    for place in standing.places:
        table.add_row(
            place.name, place.pool or "-", place.host or "-",
            "-" if place.began_at is None else f"+{format_duration(place.began_at - min(began))}",
            _words(place),
        )  # fmt: skip
    console.print(table)


def _words(place: Place) -> str:
    """How a place stands, such as `ended with 75: interrupted`."""
    code = "" if place.exit_code is None else f" with {place.exit_code}"
    return f"{place.state}{code}" + (f": {place.reason}" if place.reason else "")
