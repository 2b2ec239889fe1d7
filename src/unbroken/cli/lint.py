"""``unbroken lint``: the traps in the user's own Kubernetes manifests."""

from __future__ import annotations

import sys
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unbroken.errors import EXIT_FAILED, ConfigError, NotFoundError

if TYPE_CHECKING:
    from unbroken.lint import Finding

_ORDER = ("note", "warning", "error")


@click.command(short_help="Name the traps in Kubernetes manifests.")
@click.option("--save-seconds", type=click.FloatRange(min=0), help="How long a save takes, measured; in seconds.")
@click.option("--run", "uri", metavar="URI", help="Take the longest of this run's last saves for --save-seconds.")
@click.option("--ignore", multiple=True, metavar="ID", help="Leave this rule out; may be given again.")
@click.option("--fail-on", type=click.Choice(_ORDER), default="warning", show_default=True, help="Exit 1 from here on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.argument("files", nargs=-1, required=True)
def lint(
    files: tuple[str, ...],
    save_seconds: float | None,
    uri: str | None,
    ignore: tuple[str, ...],
    fail_on: str,
    as_json: bool,
) -> int:
    """Read manifests (files, folders, or - for standard input) and name what breaks a training on spot instances."""
    from unbroken.cli.reading import print_json
    from unbroken.lint import count_known, lint_text

    _check_ids(ignore)
    if uri is not None and save_seconds is None:
        save_seconds = _longest_save(uri)
    found: list[Finding] = []
    known = 0
    for name, text in _texts(files):
        known += count_known(text, name)
        found += [one for one in lint_text(text, name, save_seconds=save_seconds) if one.rule not in ignore]
    if as_json:
        print_json({"findings": [asdict(one) for one in found], "documents": known})
    else:
        _print(found, known)
    return EXIT_FAILED if any(_ORDER.index(one.severity) >= _ORDER.index(fail_on) for one in found) else 0


def _longest_save(uri: str) -> float:
    """Of the last 20 that became durable, in seconds."""
    from unbroken.cli.reading import open_run

    commits = open_run(uri).state.commits[-20:]
    if not commits:
        raise NotFoundError(f"{uri} has no checkpoint yet", kind="checkpoint", hint="Say --save-seconds instead")
    return max(record.event.seconds for record in commits)


def _check_ids(ignore: tuple[str, ...]) -> None:
    from unbroken.lint import RULES

    for one in ignore:
        if one not in RULES:
            near = get_close_matches(one, RULES, 1, 0)
            raise ConfigError(f"--ignore {one}: there is no such rule", kind="rule", hint=f"The nearest is {near[0]}")


def _texts(files: tuple[str, ...]) -> list[tuple[str, str]]:
    texts = []
    for name in files:
        if name == "-":
            texts.append(("-", sys.stdin.read()))
            continue
        path = Path(name)
        inside = sorted(one for one in path.rglob("*") if one.suffix in (".yaml", ".yml")) if path.is_dir() else [path]
        for one in inside:
            try:
                texts.append((str(one), one.read_text(encoding="utf-8")))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{one} cannot be read: {error}", kind="file") from error
    return texts


def _print(found: list[Finding], known: int) -> None:
    for one in found:
        click.echo(f"{one.file}:{one.line}: {one.severity}[{one.rule}] {one.kind}/{one.name} {one.path}")
        click.echo(f"  {one.reason}")
        for line in one.mended.splitlines():
            click.echo(f"    {line}")
    if not known:
        click.echo("No document of a kind that trainings use was found")
    elif not found:
        click.echo(f"{known} documents, nothing found")
