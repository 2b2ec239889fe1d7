"""``unbroken show``: what one checkpoint holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from unbroken.clock import format_time

if TYPE_CHECKING:
    from unbroken.checkpoint import Manifest
    from unbroken.journal import CheckpointRecord


@click.command(short_help="Show what one checkpoint holds.")
@click.option("--step", type=click.IntRange(0), help="Of which step; the newest checkpoint by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md names the keys.")
@click.argument("uri")
def show(uri: str, step: int | None, as_json: bool) -> None:
    """Show the tensors, packs and other values of a checkpoint of the run at URI.

    Reads no tensor: the manifest, and the records of its ranks.
    """
    from unbroken.checkpoint import load_manifest
    from unbroken.cli.reading import kept_checkpoints, open_run, print_json

    journal = open_run(uri)
    record = kept_checkpoints(journal, step)[-1]
    manifest = load_manifest(journal.store, record)
    if as_json:
        print_json(_document(journal.store.uri, record, manifest))
    else:
        _print(journal.store.uri, record, manifest)


def _document(uri: str, record: CheckpointRecord, manifest: Manifest) -> dict[str, Any]:
    return {
        "uri": uri,
        "step": manifest.step,
        "attempt": manifest.attempt,
        "created_at": manifest.created_at,
        "world_size": manifest.world_size,
        "manifest": record.event.manifest,
        "sha256": record.event.sha256,
        "parent": manifest.parent or None,
        "partial": manifest.partial,
        "size": manifest.size,
        "groups": _groups(manifest),
        "tensors": [
            {
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "size": tensor.size,
                "slices": len(tensor.slices),
                "packs": sorted({manifest.packs[piece.pack].key for piece in tensor.slices}),
            }
            for tensor in manifest.tensors
        ],
        "packs": [{"key": pack.key, "size": pack.size} for pack in manifest.packs],
    }


def _groups(manifest: Manifest) -> list[dict[str, Any]]:
    """Tensors and bytes under each name of the run's state, of all ranks together, in the order of the state."""
    from unbroken.checkpoint.tree import tensor_names

    groups: dict[str, dict[str, Any]] = {
        str(name): {"name": str(name), "tensors": 0, "size": 0} for name in manifest.state_of(0)
    }
    own = {name for local in manifest.locals for name in tensor_names(local)}
    for tensor in manifest.tensors:
        path = tensor.name.partition("/")[2] if tensor.name in own else tensor.name  # after rank3/
        name = path.partition("/")[0]
        group = groups.setdefault(name, {"name": name, "tensors": 0, "size": 0})
        group["tensors"] += 1
        group["size"] += tensor.size
    return list(groups.values())


def _print(uri: str, record: CheckpointRecord, manifest: Manifest) -> None:
    from rich.markup import escape

    from unbroken.report.text import format_size, make_console, make_table

    console = make_console()
    console.print(f"step {manifest.step} of {uri}", markup=False)
    ranks = f", {manifest.world_size} ranks" if manifest.world_size > 1 else ""
    written = f"{format_time(manifest.created_at)}, {format_size(manifest.size)}"
    console.print(f"  attempt {manifest.attempt}, {written}{ranks}")
    console.print(f"  {record.event.manifest}, SHA-256 {record.event.sha256}", markup=False)
    groups = make_table("state", "tensors", "size", right=("tensors", "size"))
    for group in _groups(manifest):
        groups.add_row(escape(group["name"]), str(group["tensors"]), format_size(group["size"]))
    console.print(groups)
    tensors = make_table("tensor", "type", "shape", "size", right=("size",))
    for tensor in manifest.tensors:
        tensors.add_row(
            escape(tensor.name), tensor.dtype, "x".join(map(str, tensor.shape)) or "-", format_size(tensor.size)
        )
    console.print(tensors)
    packs = make_table("pack", "size", right=("size",))
    for pack in manifest.packs:
        packs.add_row(pack.key, format_size(pack.size))
    console.print(packs)
