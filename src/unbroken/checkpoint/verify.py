"""Reading every byte of a checkpoint again, headers included, and reporting all that is wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from unbroken.checkpoint.chunks import READERS, Chunk, batch_range, batches, header_chunk, named, tensor_chunks
from unbroken.checkpoint.committed import get_committed, load_manifest
from unbroken.checkpoint.digest import digest
from unbroken.checkpoint.manifest import SHARDED_FORMAT, Manifest
from unbroken.checkpoint.metrics import read_metrics_object
from unbroken.checkpoint.tree import decode_tree
from unbroken.errors import DamagedError, FormatError, NotFoundError
from unbroken.journal import CheckpointRecord
from unbroken.store import Store


@dataclass(frozen=True)
class Verification:
    """What was found. ``bytes`` counts what was read of packs; ``problems`` is empty for a sound checkpoint."""

    step: int
    tensors: int
    bytes: int
    problems: list[str]


def verify_checkpoint(store: Store, record: CheckpointRecord) -> Verification:
    """Read a checkpoint whole and check every byte: manifest, packs, rank records, logged values.

    A pack that is shared with other checkpoints is checked where this one uses it.

    Raises:
        StoreError: the storage failed; nothing is known of the checkpoint then.
    """
    try:
        manifest = load_manifest(store, record)
    except (DamagedError, FormatError) as error:
        return Verification(record.step, 0, 0, [error.message])
    problems = list(_around_packs(store, record, manifest))
    chunks = [chunk for tensor in manifest.tensors for chunk in tensor_chunks(manifest, tensor)]
    by_pack: dict[str, list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        by_pack[chunk.key].append(chunk)
    chunks.extend(header_chunk(pack) for pack in manifest.packs)
    read = 0
    with ThreadPoolExecutor(READERS, thread_name_prefix="unbroken-verify") as pool:
        for count, found in pool.map(lambda batch: _verify_batch(store, batch, by_pack), batches(chunks)):
            read += count
            problems.extend(found)
    return Verification(record.step, len(manifest.tensors), read, list(dict.fromkeys(problems)))


def _around_packs(store: Store, record: CheckpointRecord, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the state trees, the rank records and the logged values."""
    for tree in (manifest.state, *manifest.locals):
        try:
            decode_tree(tree)
        except FormatError as error:
            yield error.message
    # Of several ranks the manifest was just put together from their records.
    for rank in manifest.ranks if manifest.format < SHARDED_FORMAT else ():
        try:
            get_committed(store, rank.key, rank.sha256)
        except DamagedError as error:
            yield error.message
    try:
        read_metrics_object(store, record)
    except (DamagedError, FormatError) as error:
        yield error.message


def _verify_batch(store: Store, batch: list[Chunk], by_pack: dict[str, list[Chunk]]) -> tuple[int, list[str]]:
    """Bytes read and problems found."""
    key, start, length = batch_range(batch)
    try:
        data = store.get_range(key, start, length)
    except NotFoundError as error:
        if error.kind != "object":
            raise
        return 0, [f"{key} is missing (it holds {named(by_pack[key]) or 'no bytes'})"]
    except DamagedError as error:
        return 0, [f"{error.message} (it holds {named(batch)})"]
    return length, [
        f"{chunk.holds} in {key}: bytes {chunk.start}-{chunk.start + chunk.length} disagree with their digest"
        for chunk in batch
        if digest(data[chunk.start - start : chunk.start - start + chunk.length]) != chunk.digest
    ]
