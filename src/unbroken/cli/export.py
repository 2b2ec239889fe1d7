"""``unbroken export``: a checkpoint as files that other programs read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unbroken.errors import ConfigError

if TYPE_CHECKING:
    from unbroken.checkpoint.export import Exported

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip
_DEFAULT = "model"
_EPILOG = "Exit codes: 0 written; 10 nothing is there; 12 damaged bytes; 74 a storage failed; 78 mend the call."


@click.command(epilog=_EPILOG, short_help="Write a checkpoint as safetensors, or for torch's distributed checkpoint.")
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), metavar="PATH",
              help="A file that ends in .safetensors, or a folder.")  # fmt: skip
@click.option("--step", type=click.IntRange(0), help="Of which step; the newest checkpoint by default.")
@click.option("--format", "form", type=click.Choice(["safetensors", "dcp"]), default="safetensors", show_default=True,
              help="dcp: a folder for torch.distributed.checkpoint.load; needs torch.")  # fmt: skip
@click.option("--only", multiple=True, metavar="NAME", help="A part of the run's state; again for more. "
              f"By default: {_DEFAULT}.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="All parts of the run's state.")
@click.option("--max-shard-size", metavar="SIZE",
              help="Most bytes of tensors in a file, as 5GB; in a folder 5GB by default.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@click.argument("uri")
def export(
    uri: str, target: Path, step: int | None, form: str, only: tuple[str, ...], everything: bool,
    max_shard_size: str | None, force: bool,
) -> None:  # fmt: skip
    """Write a checkpoint of the run at URI as files for other programs. Every byte is verified on the way.

    With one part, tensors are called as its state_dict calls them; with several, the part's name comes first. PATH
    appears when all is written and on the disk, or not at all.
    """
    from unbroken.checkpoint import load_manifest
    from unbroken.checkpoint.export import export_safetensors
    from unbroken.checkpoint.selection import held_objects
    from unbroken.cli.reading import kept_checkpoints, open_run
    from unbroken.cli.torch_part import torch_part

    if only and everything:
        raise ConfigError("--only and --all exclude each other", kind="options")
    if max_shard_size is not None and form != "safetensors":
        raise ConfigError("--max-shard-size is for safetensors alone", kind="options")
    limit = parse_size(max_shard_size) if max_shard_size is not None else None
    journal = open_run(uri)
    record = kept_checkpoints(journal, step)[-1]
    manifest = load_manifest(journal.store, record)
    objects = held_objects(manifest) if everything else list(dict.fromkeys(only)) or [_DEFAULT]
    path = target.absolute()
    if form == "dcp":
        write = torch_part("export_dcp", "export --format dcp").export_dcp
        done: Exported = write(journal.store, manifest, objects, path, force=force)
    else:
        done = export_safetensors(journal.store, manifest, objects, path, max_shard_size=limit, force=force)
    _print(target, record.step, objects, done)


def parse_size(text: str) -> int:
    """Bytes of ``5GB``, ``512MiB`` or ``1000``.

    Raises:
        ConfigError: it is no size, or is not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found and found[2].lower() in _UNITS else 0
    if size < 1:
        raise ConfigError(f"{text!r} is no size", kind="size", hint="Write a number and a unit, such as 5GB or 512MiB")
    return size


def _print(target: Path, step: int, objects: list[str], done: Exported) -> None:
    from unbroken.report.text import format_size

    files = f"{done.files} file{'s' if done.files > 1 else ''}"
    click.echo(
        f"{target}: {', '.join(objects)} of step {step}, {done.tensors} tensors, {format_size(done.bytes)}, {files}"
    )
    if done.left_out:
        click.echo(f"left out: {done.left_out} values that are no tensors; --format dcp keeps them", err=True)
