"""``unbroken launch``: have an engine run a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unbroken.cli.engines import document, engine_for, engine_option, print_standing
from unbroken.errors import EXIT_FAILED, ConfigError

if TYPE_CHECKING:
    from unbroken.engine.face import Standing
    from unbroken.engine.local.market import Market
    from unbroken.job import Job


@click.command(short_help="Have an engine run a job until it is finished.")
@click.argument("job", type=click.Path(dir_okay=False, path_type=Path))
@engine_option
@click.option("--replace", is_flag=True, help="Stop one of the same name that was launched otherwise, and go on so.")
@click.option("--follow", "-f", is_flag=True, help="Print what the training prints until the job ends.")
@click.option(
    "--trace", "traces", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Play the job in a recorded spot market (local): a trace for each spot pool, in the job's order.",
)  # fmt: skip
@click.option("--policy", help="What decides in the recorded market; programme by default.")
@click.option("--speed", type=float, default=3600.0, show_default=True, help="Seconds of the market in one second.")
@click.option("--changeover", default="12min", show_default=True, help="In the market, from a start to its first step.")
@click.option(
    "--history", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Traces from which the policy learns how long spot stays.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
def launch(job: Path, engine: str, replace: bool, follow: bool, as_json: bool, **played: Any) -> int:
    """Have the engine run JOB until it is finished, and return at once. Saying it again changes nothing."""
    from unbroken.cli.reading import print_json
    from unbroken.job import load_job
    from unbroken.report.text import make_console

    loaded = load_job(job)
    standing = _launch(loaded, engine, replace, _market(loaded, engine, played))
    if as_json:
        print_json(document(standing))
    else:
        print_standing(make_console(), standing)
    return _follow(loaded, engine) if follow else _code(standing)


def _launch(job: Job, engine: str, replace: bool, market: Market | None) -> Standing:
    if market is None:
        return engine_for(engine, job).launch(job, replace=replace)
    import msgspec

    from unbroken.engine.local import LocalEngine

    return LocalEngine().launch(job, replace=replace, market=msgspec.to_builtins(market))


def _market(job: Job, engine: str, played: dict[str, Any]) -> Market | None:
    if not played["traces"]:
        if played["policy"] or played["history"]:
            raise ConfigError("a policy needs a market", kind="market", hint="Say --trace FILE for each spot pool")
        return None
    if engine != "local":
        raise ConfigError(f"--trace is for the engine local, not {engine}", kind="market")
    try:
        import numpy  # noqa: F401 - said here, once, in words
    except ImportError as error:
        hint = "pip install 'unbroken[plan]'"
        raise ConfigError("traces need numpy, which is not installed", kind="extra", hint=hint) from error
    from unbroken.engine.local.market import Market, check_market
    from unbroken.policy.choice import DEFAULT

    market = Market(
        [str(path.absolute()) for path in played["traces"]], played["policy"] or DEFAULT, played["speed"],
        played["changeover"], [str(path.absolute()) for path in played["history"]],
    )  # fmt: skip
    check_market(job, market)
    return market


def _follow(job: Job, name: str) -> int:
    engine = engine_for(name, job)
    try:
        for line in engine.logs(job.name, follow=True):
            click.echo(line)
    except KeyboardInterrupt:
        click.echo(f"the job {job.name} goes on; end it with: unbroken stop", err=True)
        return 130
    return _code(engine.status(job.name))


def _code(standing: Standing) -> int:
    from unbroken.engine.face import State

    return EXIT_FAILED if standing.state == State.FAILED else 0
