"""``unbroken drill``: interrupt a run on purpose and prove that it resumes bit for bit."""

from __future__ import annotations

import secrets
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from unbroken.clock import SYSTEM_CLOCK, parse_duration
from unbroken.errors import EXIT_FAILED, NotFoundError

if TYPE_CHECKING:
    from unbroken.drill import DrillPlan, DrillResult
    from unbroken.engine import Layout

_ON_DEMAND, _SPOT, _CURRENCY = 25.0, 8.33, "USD"
"""Prices of an hour where none are given: of the order of an eight-GPU machine. The output calls them assumed."""

_EPILOG = """Exit codes: 0 every interruption was made and both trainings ended alike; 1 they differ, or an interruption
could not be made, or a training failed; 78 the command cannot be drilled."""


@click.command(
    epilog=_EPILOG,
    context_settings={"allow_interspersed_args": False},
    short_help="Interrupt a run on purpose and prove that it resumes bit for bit.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the moments of the interruptions.")
@click.option("--interruptions", type=click.IntRange(4), default=5, show_default=True, metavar="N", help="At least 4.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Rehearse so many.")
@click.option(
    "--ranks-per-node", type=click.IntRange(1), default=1, show_default=True, metavar="M",
    help="Started by torchrun where there is more than one rank in all.",
)  # fmt: skip
@click.option("--store", metavar="URI", help="Folder or bucket path for the two runs; by default ./drill.")
@click.option("--every", default="", metavar="CADENCE", help="How often to save; outranks the script's.")
@click.option("--on-demand", type=click.FloatRange(0), metavar="PRICE", help="Of an hour on demand.")
@click.option("--spot", type=click.FloatRange(0), metavar="PRICE", help="Of an hour on spot.")
@click.option("--currency", metavar="CODE", help="Of the prices; USD by default.")
@click.option("--timeout", default="1h", show_default=True, metavar="DURATION", help="For each of the trainings.")
@click.option("--check-determinism", is_flag=True, help="First train undisturbed twice, and compare those.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON; progress goes to standard error.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def drill(
    seed: int,
    interruptions: int,
    nodes: int,
    ranks_per_node: int,
    store: str | None,
    every: str,
    on_demand: float | None,
    spot: float | None,
    currency: str | None,
    timeout: str,
    check_determinism: bool,
    as_json: bool,
    command: tuple[str, ...],
) -> int:
    """Train twice, once undisturbed and once interrupted on purpose, and compare the ends bit by bit.

    COMMAND is a training (unbroken drill -- python train.py ...), or a job file (unbroken drill job.yaml), or
    nothing: then a small GPT is trained here. The interruptions are a two-minute notice from a local EC2 metadata
    service, SIGTERM, SIGKILL of the trainer, and SIGKILL of trainer and agent, at moments drawn from --seed.

    With --nodes or --ranks-per-node, N nodes of M ranks are rehearsed on this machine, each node with an agent of its
    own, and each interruption is that of one node. COMMAND is then written as for one rank, without torchrun.
    """
    from unbroken.drill import DrillPlan
    from unbroken.engine import Layout

    layout = Layout(nodes, ranks_per_node)
    subject = _subject(command, layout)
    layout.check(subject.command)
    where, logs = _places(store)
    hourly = _first(on_demand, subject.on_demand), _first(spot, subject.spot)
    plan = DrillPlan(
        command=subject.command,
        store=where,
        logs=logs,
        layout=layout,
        seed=seed,
        interruptions=interruptions,
        every=every or subject.every,
        grace=subject.grace,
        environment=subject.environment,
        on_demand=_ON_DEMAND if hourly[0] is None else hourly[0],
        spot=_SPOT if hourly[1] is None else hourly[1],
        currency=currency or subject.currency or _CURRENCY,
        timeout=parse_duration(timeout),
        check_determinism=check_determinism,
    )
    assumed = None in hourly
    _check_store(where)
    with _stop_signals_raise():
        return _run(plan, as_json=as_json, assumed=assumed)


@dataclass(frozen=True)
class _Subject:
    """What is drilled, and what is known about it besides the options."""

    command: list[str]
    every: str = ""
    grace: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    on_demand: float | None = None
    spot: float | None = None
    currency: str = ""


def _subject(command: tuple[str, ...], layout: Layout) -> _Subject:
    if not command:
        from unbroken.drill.example import choose_example

        example = choose_example(layout.ranks)
        return _Subject(example.command(), every=example.every, environment=example.environment)
    if len(command) == 1 and command[0].endswith((".yaml", ".yml")):
        return _from_job(Path(command[0]))
    return _Subject(list(command))


def _from_job(path: Path) -> _Subject:
    from unbroken.job import load_job

    job = load_job(path)
    prices = job.prices
    return _Subject(
        job.argv,
        every=job.every or "",
        grace="" if job.grace is None else f"{job.grace:g}",
        environment=dict(job.env),
        on_demand=prices.on_demand if prices else None,
        spot=prices.spot if prices else None,
        currency=prices.currency if prices else "",
    )


def _places(store: str | None) -> tuple[str, Path]:
    """URI for the runs, and folder for the logs: new ones for each drill, since a finished run would train nothing."""
    from unbroken.store import parse_uri

    base = parse_uri(store or "drill")
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    if base.scheme == "file":
        return f"{base}/{name}", Path(str(base)) / name / "logs"
    return f"{base}/{name}", Path("drill").absolute() / name / "logs"


def _check_store(uri: str) -> None:
    """Say now, and not after an agent was started, that a bucket is missing or a folder cannot be written."""
    from unbroken.journal import Journal
    from unbroken.store import open_store

    try:
        Journal.open(open_store(uri, create=True))
    except NotFoundError as error:
        if error.kind != "run":
            raise


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _run(plan: DrillPlan, *, as_json: bool, assumed: bool) -> int:
    from unbroken.drill import run_drill
    from unbroken.drill.text import Narrator, print_result
    from unbroken.report.text import make_console

    console = make_console(sys.stderr if as_json else None)
    console.print(f"Drill of `{shlex.join(plan.command)}`{_laid_out(plan.layout)}", markup=False)
    console.print(f"  runs below {plan.store}, logs in {plan.logs}, seed {plan.seed}", markup=False)
    with Narrator(console, SYSTEM_CLOCK, plan.layout.nodes) as narrator:
        result = run_drill(plan, narrator)
    if as_json:
        click.echo(_as_json(result, assumed))
    else:
        print_result(console, result, assumed_prices=assumed)
    return 0 if result.passed else EXIT_FAILED


def _laid_out(layout: Layout) -> str:
    if layout.ranks == 1:
        return ""
    nodes = f"{layout.nodes} node{'s' * (layout.nodes > 1)}"
    return f" on {nodes} of {layout.ranks_per_node} rank{'s' * (layout.ranks_per_node > 1)}"


def _as_json(result: DrillResult, assumed: bool) -> str:
    """The findings with stable keys; docs/cli.md names them."""
    import msgspec

    found = result.comparison
    attempts = [
        {**msgspec.to_builtins(line), "seconds": line.seconds, "lost_seconds": line.lost_seconds}
        for line in result.attempts
    ]
    document = {
        "passed": result.passed,
        "identical": found.identical,
        "seed": result.seed,
        "command": result.command,
        "nodes": result.layout.nodes,
        "ranks_per_node": result.layout.ranks_per_node,
        "runs": {"undisturbed": result.baseline_uri, "interrupted": result.interrupted_uri},
        "deterministic": result.deterministic,
        "interruptions": result.schedule,
        "missed": result.missed,
        "attempts": attempts,
        "steps_repeated": result.steps_repeated,
        "lost_seconds": result.lost_seconds,
        "comparison": {
            "tensors": found.tensors,
            "bytes": found.bytes,
            "logged": found.logged,
            "groups": found.groups,
            "differences": found.differences,
            "unseeded": found.unseeded,
            "world_sizes": found.world_sizes,
            "left_out": found.left_out,
        },
        "cost": {
            "assumed_prices": assumed,
            "on_demand": {**msgspec.to_builtins(result.on_demand), "amount": result.on_demand.amount},
            "spot": {**msgspec.to_builtins(result.spot), "amount": result.spot.amount},
        },
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


@contextmanager
def _stop_signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end a drill as Ctrl-C does, so that its processes are ended with it."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the face of a signal handler
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt as error:
        raise click.Abort from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
