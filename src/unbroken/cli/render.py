"""``unbroken render``: documents for the systems that run a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unbroken.errors import ConfigError

if TYPE_CHECKING:
    from unbroken.render import Document

_PARTS = ("nodepool", "nth", "nth-queue", "rbac", "networkpolicy", "podmonitor", "bucket-lifecycle", "iam-policy")
"""The keys of ``unbroken.render.PARTS``, written out so that help imports nothing."""


@click.group(short_help="Write the documents with which Kubernetes runs a job.")
def render() -> None:
    """Write the documents with which others run a job. Nothing is applied, and nobody is asked."""


@render.command(epilog="Exit codes: 0 written; 10 there is no such job file; 78 mend the job file or the call.")
@click.option("--with", "parts", multiple=True, type=click.Choice(_PARTS), metavar="PART",
              help=f"Also {', '.join(_PARTS[:-1])} or {_PARTS[-1]}; again for more.")  # fmt: skip
@click.option("--no-training", is_flag=True, help="Only what --with names.")
@click.option("--output-dir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write a file for each document, and kustomization.yaml.")  # fmt: skip
@click.argument("job_file", metavar="JOB.yaml", type=click.Path(path_type=Path))
def kubernetes(job_file: Path, parts: tuple[str, ...], no_training: bool, output_dir: Path | None) -> None:
    """Render JOB.yaml for Kubernetes 1.31 and newer: a Job, or a JobSet where it has several nodes.

    Example: unbroken render kubernetes job.yaml --with rbac | kubectl apply -f -
    """
    from unbroken.job import load_job
    from unbroken.render import render_kubernetes

    if no_training and not parts:
        raise ConfigError("--no-training leaves nothing to render", kind="options", hint="Name a part by --with")
    documents = render_kubernetes(load_job(job_file), parts, with_training=not no_training)
    if output_dir is not None:
        _write(documents, output_dir)
    else:
        click.echo(_stream(documents), nl=False)


def _stream(documents: list[Document]) -> str:
    from unbroken.render import yaml_stream

    others = [document for document in documents if not document.in_cluster]
    if not others:
        return yaml_stream(documents)
    if len(documents) == 1:
        return documents[0].text
    raise ConfigError(
        f"{others[0].file} is no Kubernetes object and cannot be printed between others", kind="options",
        hint="Write files with --output-dir, or this one alone: --no-training and one --with",
    )  # fmt: skip


def _write(documents: list[Document], folder: Path) -> None:
    from unbroken.render import kustomization

    texts = {document.file: document.text for document in documents}
    if any(document.in_cluster for document in documents):
        texts["kustomization.yaml"] = kustomization(documents)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error})", kind="output", hint="Name another --output-dir"
        ) from error
    for name in texts:
        click.echo(str(folder / name))
