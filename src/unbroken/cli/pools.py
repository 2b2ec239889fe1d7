"""``unbroken pools``: where spot is expected to be cheapest for this run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unbroken.clock import SYSTEM_CLOCK, format_duration, parse_duration
from unbroken.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from unbroken.job import Job
    from unbroken.pools.diversify import Chosen
    from unbroken.pools.facts import Reading
    from unbroken.pools.ranking import Experience, Ranked


@click.command(short_help="Rank instance types and zones by what the run would cost there.")
@click.argument("job", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Instance type; the job's pools by default.")
@click.option("--region", "regions", multiple=True, metavar="REGION", help="Ask EC2 there; of files, only these.")
@click.option(
    "--from", "files", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Answers of the AWS command line, the advisor's feed, or a table of prices; nothing is asked then.",
)  # fmt: skip
@click.option("--run", "runs", multiple=True, metavar="URI", help="Learn from this run too; the job's by default.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Training; the job's expected_hours.")
@click.option("--by", type=click.Choice(["cost", "finish"]), default="cost", show_default=True, help="What counts.")
@click.option("--choose", "most", type=click.IntRange(1), default=4, show_default=True, help="At most so many pools.")
@click.option(
    "--as", "form", type=click.Choice(["table", "nodepool", "asg", "job"]), default="table", show_default=True,
    help="A table, or the chosen pools for Karpenter, an Auto Scaling group, or the job file.",
)  # fmt: skip
@click.option("--max-age", default="1h", show_default=True, help="How long an answer of EC2 is taken again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
def pools(
    job: Path | None, types: tuple[str, ...], regions: tuple[str, ...], files: tuple[Path, ...], runs: tuple[str, ...],
    hours: float | None, by: Any, most: int, form: str, max_age: str, as_json: bool,
) -> None:  # fmt: skip
    """Rank pools of spot for JOB, and choose some that are not all gone at once."""
    from unbroken.cli.reading import print_json
    from unbroken.job import load_job
    from unbroken.pools.diversify import choose
    from unbroken.pools.expectation import Terms
    from unbroken.pools.offers import assemble
    from unbroken.pools.ranking import rank

    loaded = load_job(job) if job is not None else None
    wanted = list(types) or (list(dict.fromkeys(pool.instance_type for pool in loaded.pools)) if loaded else [])
    nodes = loaded.ranks.nodes if loaded else 1
    readings = _readings(files, regions, wanted, nodes, parse_duration(max_age))
    offers = assemble(readings, wanted, regions)
    if not offers:
        found = ", ".join(wanted) or "any type"
        raise NotFoundError(f"no source knows a pool of {found}", kind="pools", hint="Check --type, --region, --from")
    terms = Terms(_hours(loaded, hours), nodes=nodes)
    ranked = rank(offers, terms, by=by, experience=_experience([*runs, *([loaded.run] if loaded else [])]))
    chosen = choose(ranked, most)
    if as_json:
        print_json(_document(readings, ranked, chosen))
    elif form == "table":
        _print(readings, ranked, chosen, loaded)
    else:
        _print_form(form, chosen)


def _hours(job: Job | None, hours: float | None) -> float:
    found = hours or (job.expected_hours if job else None)
    if not found:
        raise ConfigError("how long the training takes is not known", kind="hours", hint="Say --hours 48")
    return found


def _readings(
    files: Sequence[Path], regions: Sequence[str], types: Sequence[str], nodes: int, max_age: float
) -> list[Reading]:
    from unbroken.pools.files import read_file

    if files:
        return [read_file(path) for path in files]
    if not regions or not types:
        raise ConfigError(
            "there is nothing to ask", kind="pools",
            hint="Say --region us-east-1 and --type p4d.24xlarge (or a job with pools), or --from FILE",
        )  # fmt: skip
    from unbroken.pools.aws import read_feed, read_region
    from unbroken.pools.cache import Cache, cache_folder

    cache = Cache(cache_folder(), max_age, SYSTEM_CLOCK)
    found = [
        cache.get(f"{region} {sorted(types)} {nodes}", lambda region=region: read_region(  # type: ignore[misc]
            region, types, nodes, SYSTEM_CLOCK
        ))
        for region in regions
    ]  # fmt: skip
    return [*found, cache.get("advisor", lambda: read_feed(SYSTEM_CLOCK))]


def _experience(uris: Sequence[str]) -> dict[str, Experience]:
    from unbroken.cli.reading import open_run
    from unbroken.pools.experience import experience_of

    states = []
    for uri in uris:
        try:
            states.append(open_run(uri).state)
        except NotFoundError:
            continue  # a run that has not begun has met nothing
    return experience_of(states)


def _document(readings: Sequence[Reading], ranked: Sequence[Ranked], chosen: Chosen | None) -> dict[str, Any]:
    from unbroken.pools.output import group_overrides, job_pools, node_pool_requirements

    now = SYSTEM_CLOCK.now()
    sources = [
        {"source": each.source, "age": max(0.0, now - each.at), "problems": list(each.problems)} for each in readings
    ]
    if chosen is None:
        return {"sources": sources, "pools": [_row(each) for each in ranked], "chosen": None}
    return {
        "sources": sources,
        "pools": [_row(each) for each in ranked],
        "chosen": {
            "pools": [each.offer.name for each in chosen.pools],
            "effective": chosen.effective,
            "all_down": chosen.all_down,
            "cost": chosen.cost,
            "nodepool": node_pool_requirements(chosen),
            "asg": group_overrides(chosen),
            "job": job_pools(chosen),
        },
    }


def _row(each: Ranked) -> dict[str, Any]:
    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    offer, expected = each.offer, each.expected
    return {
        "pool": offer.name, "region": offer.region, "zone_id": offer.zone_id, "price": plain(each.price),
        "price_now": offer.spot, "on_demand_price": offer.on_demand, "score": offer.score, "band": offer.label or None,
        "hazard": each.hazard, "cost": plain(expected.cost), "finish": plain(expected.finish),
        "interruptions": plain(expected.interruptions), "on_demand_cost": each.on_demand and each.on_demand.cost,
        "flags": list(offer.flags), "takes_part": each.takes_part, "own_hours": each.experience.hours,
        "own_interruptions": each.experience.interruptions,
    }  # fmt: skip


def _print(readings: Sequence[Reading], ranked: Sequence[Ranked], chosen: Chosen | None, job: Job | None) -> None:
    from unbroken.report.text import make_console, make_table

    console, now = make_console(), SYSTEM_CLOCK.now()
    for each in readings:
        console.print(f"{each.source}: {format_duration(max(0.0, now - each.at))} old", markup=False, highlight=False)
        for problem in each.problems:
            console.print(f"  {problem}", markup=False, highlight=False)
    numbers = ("price", "on-demand", "interrupted", "cost", "finish")
    table = make_table("pool", *numbers, "", right=numbers)
    picked = {each.offer.name for each in chosen.pools} if chosen else set()
    for one in ranked:
        offer, expected = one.offer, one.expected
        words = [*offer.flags, *(["chosen"] if offer.name in picked else [])]
        table.add_row(
            offer.name, _money(one.price), _money(offer.on_demand), f"{expected.interruptions:.1f}",
            _money(expected.cost), f"{expected.finish:.1f} h", " ".join(words),
        )  # fmt: skip
    console.print(table)
    if chosen is None:
        console.print("no pool can be taken: none has a discount and machines", highlight=False)
        return
    text = f"chosen: {len(chosen.pools)} pools, worth {chosen.effective:.1f} independent ones; all gone "
    text += f"{chosen.all_down:.0%} of the time; {_money(chosen.cost)} expected, with on-demand then"
    console.print(text, markup=False, highlight=False)
    if job is not None and len({each.offer.region for each in chosen.pools}) > 1:
        console.print(
            f"they are in several regions: restoring from {job.run} is slow and costs traffic in all but its own",
            markup=False, highlight=False,
        )  # fmt: skip


def _money(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _print_form(form: str, chosen: Chosen | None) -> None:
    import yaml

    from unbroken.pools.output import group_overrides, job_pools, node_pool_requirements

    if chosen is None:
        raise NotFoundError("no pool can be taken", kind="pools", hint="See why: --as table")
    documents: dict[str, Any] = {
        "nodepool": lambda: {"requirements": node_pool_requirements(chosen)},
        "asg": lambda: group_overrides(chosen),
        "job": lambda: {"pools": job_pools(chosen)},
    }
    click.echo(yaml.safe_dump(documents[form](), sort_keys=False), nl=False)
