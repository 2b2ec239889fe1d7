"""``unbroken doctor``: what would go wrong with a training in this place."""

from __future__ import annotations

import os
import textwrap
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unbroken.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unbroken.doctor import Check, Finding, Place

_WIDTH = 79
_INDENT = 20


@click.command(short_help="Check this place: store, memory, clock, notices, torchrun.")
@click.option("--run", "uri", default="", metavar="URI", help="Run URI, where there is no job file.")
@click.option("--state", default="", metavar="SIZE", help="Bytes that a node saves, as 12GiB; outranks the job file's.")
@click.option("--only", multiple=True, metavar="NAME", help="Run this check alone; may be given again.")
@click.option("--skip", multiple=True, metavar="NAME", help="Leave this check out; may be given again.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=180.0, show_default=True, metavar="SECONDS", help="For all checks."
)
@click.option(
    "--fail-on", type=click.Choice(["note", "warning", "error"]), default="error", show_default=True,
    help="Do not end with 0 from here on.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; docs/cli.md names the keys.")
@click.argument("job", required=False, type=click.Path(path_type=Path))
def doctor(
    job: Path | None,
    uri: str,
    state: str,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    timeout: float,
    fail_on: str,
    as_json: bool,
) -> int:
    """Check the place where this stands, for the training of a JOB file: what is found, why it matters, what to do.

    The actions of a training on its store are really tried, below the run's URI; nothing is left behind.
    """
    from unbroken.cli.reading import print_json
    from unbroken.doctor import examine, exit_code_of

    chosen = _chosen(only, skip)
    place = _place(job, uri, state)
    found = examine(place, chosen, seconds=timeout, say=(lambda _: None) if as_json else _print)
    code = exit_code_of(found, fail_on)
    if as_json:
        print_json({"uri": place.uri or None, "exit_code": code, "findings": [asdict(one) for one in found]})
    else:
        _print_count(found)
    return code


def _chosen(only: tuple[str, ...], skip: tuple[str, ...]) -> list[Check]:
    from unbroken.doctor import CHECKS

    names = [check.name for check in CHECKS]
    for name in (*only, *skip):
        if name not in names:
            near = get_close_matches(name, names, 1, 0)
            hint = f"The nearest is {near[0]}; all are {', '.join(names)}"
            raise ConfigError(f"{name!r} is no check", kind="check", hint=hint)
    return [check for check in CHECKS if (not only or check.name in only) and check.name not in skip]


def _place(path: Path | None, uri: str, state: str) -> Place:
    from unbroken.doctor import Place
    from unbroken.job import load_job, parse_size
    from unbroken.notice.grace import grace_from

    if path is not None and uri:
        raise ConfigError("a job file and --run are both given", kind="run", hint="Leave one of them out")
    if path is not None:
        job = load_job(path)
        os.environ.update(job.env)  # the store's endpoint and region may be there
        place = Place.of_job(job)
    else:
        place = Place(uri=uri, grace=grace_from())
    return replace(place, state=parse_size(state)) if state else place


def _print(finding: Finding) -> None:
    head = f"{finding.severity:<8}{finding.check:<12}"
    _print_wrapped(head, finding.found)
    if finding.severity == "ok":
        return
    for word, text in (("why", finding.why), ("do", finding.todo)):
        if text:
            _print_wrapped(f"{'':<{_INDENT}}{word}: ", text)


def _print_wrapped(head: str, text: str) -> None:
    # URIs are not broken, so that they can be copied.
    wrapped = textwrap.wrap(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * max(_INDENT, len(head)),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    click.echo("\n".join(wrapped))


def _print_count(found: Sequence[Finding]) -> None:
    counts = {kind: sum(one.severity == kind for one in found) for kind in ("error", "warning", "note")}
    texts = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count]
    click.echo(", ".join(texts) or "nothing to mend")
