"""``unbroken render``: a job as documents for the engine that others run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unbroken.errors import AccessError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unbroken.render import Document

# As in unbroken.render, which would import pydantic for --help; a test compares them.
EXTRAS = ("nodepool", "nth", "rbac", "networkpolicy", "podmonitor", "bucket-lifecycle", "iam-policy")
EC2_EXTRAS = ("iam-policy",)


@click.group(short_help="Write a job as documents for Kubernetes or EC2.")
def render() -> None:
    """Write a job as documents for the engine that others run."""


@render.command()
@click.option("--with", "extras", multiple=True, metavar="NAME", help=f"Also: {', '.join(EXTRAS)}; again for more.")
@click.option(
    "--output-dir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Write a file for each document, and kustomization.yaml.",
)  # fmt: skip
@click.argument("job_file", metavar="JOB", type=click.Path(path_type=Path))
def kubernetes(extras: tuple[str, ...], output_dir: Path | None, job_file: Path) -> int:
    """Print the job file JOB as a Job, or as a JobSet where it has several nodes, for Kubernetes 1.31 and newer."""
    from unbroken.job import load_job
    from unbroken.render import render_kubernetes

    _check(extras, EXTRAS)
    documents = render_kubernetes(load_job(job_file), extras)
    if output_dir is not None:
        from unbroken.render import kustomization

        _write([*documents, kustomization(documents)], output_dir)
        return 0
    _print(documents, "Kubernetes")
    return 0


@render.command()
@click.option("--with", "extras", multiple=True, metavar="NAME", help=f"Also: {', '.join(EC2_EXTRAS)}.")
@click.option(
    "--output-dir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write a file for each."
)
@click.argument("job_file", metavar="JOB", type=click.Path(path_type=Path))
def ec2(extras: tuple[str, ...], output_dir: Path | None, job_file: Path) -> int:
    """Print the job file JOB as a CloudFormation template: a launch template and an Auto Scaling group."""
    from unbroken.job import load_job
    from unbroken.render import render_ec2

    _check(extras, EC2_EXTRAS)
    documents = render_ec2(load_job(job_file), extras)
    if output_dir is not None:
        _write(documents, output_dir)
    else:
        _print(documents, "CloudFormation")
    return 0


@render.command()
def schema() -> None:
    """Print the job file's JSON Schema, for editors."""
    from unbroken.job import job_schema

    click.echo(job_schema(), nl=False)


def _check(extras: Sequence[str], known: Sequence[str]) -> None:
    for name in extras:
        if name not in known:
            from difflib import get_close_matches

            near = get_close_matches(name, known, 1, 0)[0]
            raise ConfigError(f"--with {name}: there is no such document", kind="with", hint=f"The nearest is {near}")


def _print(documents: Sequence[Document], whose: str) -> None:
    files = [document for document in documents if document.name.endswith(".json")]
    if files:
        raise ConfigError(
            f"{files[0].name} is no {whose} document and cannot be printed among them", kind="output",
            hint="Say --output-dir DIR",
        )  # fmt: skip
    click.echo("---\n".join(document.text for document in documents), nl=False)


def _write(documents: Sequence[Document], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for document in documents:
            (folder / document.name).write_text(document.text, encoding="utf-8")
            click.echo(str(folder / document.name))
    except OSError as error:
        raise AccessError(f"{folder} cannot be written: {error.strerror}", kind="folder") from error
