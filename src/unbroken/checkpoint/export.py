"""Exporting a checkpoint to safetensors files that other programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unbroken.checkpoint.destination import demand_free, new_file, new_folder, reserve, sync
from unbroken.checkpoint.dtypes import item_size, safetensors_name
from unbroken.checkpoint.manifest import Manifest, TensorRecord
from unbroken.checkpoint.safetensors import HeaderEntry, encode_header
from unbroken.checkpoint.selection import Selection, select
from unbroken.checkpoint.streaming import TensorStream
from unbroken.errors import ConfigError
from unbroken.store import Store

SUFFIX = ".safetensors"
SHARD_SIZE = 5 * 10**9
"""Bytes of tensors in one file of a folder, unless another size is asked for; what Hugging Face's tools use."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote. ``bytes`` counts tensor bytes."""

    files: int
    tensors: int
    bytes: int
    left_out: int
    """Values that are no tensors, which the format cannot hold."""


_Part = dict[str, TensorRecord]


def export_safetensors(
    store: Store,
    manifest: Manifest,
    objects: Sequence[str],
    target: Path,
    *,
    max_shard_size: int | None = None,
    force: bool = False,
) -> Exported:
    """Write tensors of a checkpoint, every byte verified.

    It holds at most one tensor, or 256 MiB of small ones, in memory; beside it, where several ranks wrote a tensor and
    it is put together, ``READERS`` chunks. Of what belongs to each rank alone, rank 0's is written.

    Args:
        objects: names of the parts of the state.
        target: a file, if its name ends in ``.safetensors``; else a folder, which gets one file, or shards.
        max_shard_size: bytes of tensors in a file; a larger tensor has a file of its own. By default 5 GB in a folder.
        force: replace an earlier export.

    Raises:
        NotFoundError: the checkpoint holds no object of such a name.
        ConfigError: the target is in use, is too small a file, or safetensors has no such element type.
        DamagedError: bytes of the checkpoint disagree with their digests; nothing is left at the target.
        StoreError: the store, or the target's file system, failed.
    """
    single = target.name.endswith(SUFFIX)
    demand_free(target, force=force, folder=not single)
    chosen = select(manifest, objects)
    _demand_tensors(chosen, objects)
    limit = max_shard_size if max_shard_size is not None or single else SHARD_SIZE
    parts = _parts(chosen.tensors, limit)
    if single and len(parts) > 1:
        raise ConfigError(
            f"{chosen.size} bytes of tensors do not go into one file of at most {limit}", kind="destination",
            hint=f"Name a folder: --to {target.with_suffix('')}",
        )  # fmt: skip
    stream = TensorStream(store, manifest, [record.name for part in parts for record in part.values()])
    if single:
        with new_file(target, force=force) as path:
            _write(path, parts[0], chosen, manifest, stream)
    else:
        with new_folder(target, force=force) as folder:
            stem = objects[0] if len(objects) == 1 else "state"
            _write_folder(folder, stem, parts, chosen, manifest, stream)
    return Exported(len(parts), len(chosen.tensors), chosen.size, chosen.values)


def _demand_tensors(chosen: Selection, objects: Sequence[str]) -> None:
    if not chosen.tensors:
        raise ConfigError(
            f"{', '.join(objects)} holds no tensors, and safetensors nothing else", kind="no-tensors",
            hint="Export with --format dcp",
        )  # fmt: skip
    for name, record in chosen.tensors.items():
        if not safetensors_name(record.dtype):
            raise ConfigError(
                f"{name} is of the type {record.dtype}, which safetensors does not have", kind="dtype",
                hint="Leave its object out with --only, or export with --format dcp",
            )  # fmt: skip


def _parts(tensors: Mapping[str, TensorRecord], limit: int | None) -> list[_Part]:
    """Deal tensors out over files in their order; within a file wide element types come first, for alignment."""
    parts: list[_Part] = [{}]
    held = 0
    for name, record in tensors.items():
        if limit is not None and parts[-1] and held + record.size > limit:
            parts.append({})
            held = 0
        parts[-1][name] = record
        held += record.size
    return [dict(sorted(part.items(), key=lambda item: -item_size(item[1].dtype))) for part in parts]


def _write_folder(
    folder: Path, stem: str, parts: list[_Part], chosen: Selection, manifest: Manifest, stream: TensorStream
) -> None:
    if len(parts) == 1:
        _write(folder / f"{stem}{SUFFIX}", parts[0], chosen, manifest, stream)
        return
    where: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = f"{stem}-{number:05d}-of-{len(parts):05d}{SUFFIX}"
        _write(folder / name, part, chosen, manifest, stream)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": chosen.size}, "weight_map": dict(sorted(where.items()))}
    with (folder / f"{stem}{SUFFIX}.index.json").open("xb") as file:
        file.write(json.dumps(index, indent=2).encode() + b"\n")
        sync(file)


def _write(path: Path, part: _Part, chosen: Selection, manifest: Manifest, stream: TensorStream) -> None:
    header = encode_header(
        (HeaderEntry(name, safetensors_name(record.dtype), record.shape, record.size) for name, record in part.items()),
        _metadata(part, chosen, manifest),
    )
    with path.open("xb") as file:
        reserve(file, len(header) + sum(record.size for record in part.values()))
        file.write(header)
        for record in part.values():
            file.write(stream.take(record.name))
        sync(file)


def _metadata(part: _Part, chosen: Selection, manifest: Manifest) -> dict[str, str]:
    """Where it is from, what libraries want to see, and the aliases as ``safetensors.torch.save_model`` puts them."""
    known = {"format": "pt", "unbroken.run": manifest.run, "unbroken.step": str(manifest.step)}
    return known | {alias: name for alias, name in chosen.aliases.items() if name in part}
