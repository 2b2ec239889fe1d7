"""Reading every byte of a checkpoint again, headers included, and reporting all that is wrong."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from unbroken.checkpoint.digest import CHUNK, digest
from unbroken.checkpoint.manifest import Manifest, PackRecord, Slice, load_manifest
from unbroken.checkpoint.tree import tensor_names
from unbroken.errors import DamagedError, FormatError, NotFoundError
from unbroken.journal import CheckpointRecord
from unbroken.store import Store

_READERS = 8


@dataclass(frozen=True)
class Verification:
    """What was found. ``bytes`` counts what was read of packs; ``problems`` is empty for a sound checkpoint."""

    step: int
    tensors: int
    bytes: int
    problems: list[str]


def verify_checkpoint(store: Store, record: CheckpointRecord) -> Verification:
    """Read a checkpoint whole and check every byte.

    Raises:
        StoreError: the storage failed; nothing is known of the checkpoint then.
    """
    try:
        manifest = load_manifest(store, record)
    except (DamagedError, FormatError) as error:
        return Verification(record.step, 0, 0, [error.message])
    problems = _tree_problems(manifest)
    slices: dict[int, list[tuple[str, Slice]]] = defaultdict(list)
    for tensor in manifest.tensors:
        if sum(piece.length for piece in tensor.slices) != tensor.size:
            problems.append(f"the slices of {tensor.name} do not add up to its size")
        for piece in tensor.slices:
            slices[piece.pack].append((tensor.name, piece))
    with ThreadPoolExecutor(_READERS, thread_name_prefix="unbroken-verify") as pool:
        results = pool.map(lambda item: _verify_pack(store, item[1], slices[item[0]]), enumerate(manifest.packs))
        read = 0
        for count, found in results:
            read += count
            problems.extend(found)
    return Verification(record.step, len(manifest.tensors), read, problems)


def _tree_problems(manifest: Manifest) -> list[str]:
    held = {tensor.name for tensor in manifest.tensors}
    return [f"the state names {name}, which is in no pack" for name in tensor_names(manifest.state) if name not in held]


def _verify_pack(store: Store, pack: PackRecord, slices: list[tuple[str, Slice]]) -> tuple[int, list[str]]:
    """Bytes read and problems found. A pack shared with older checkpoints is checked where this one uses it."""
    problems: list[str] = []
    read = 0
    pieces = [("the header", 0, pack.header_size, pack.header_digest)]
    for name, piece in slices:
        for number, known in enumerate(piece.digests):
            at = number * CHUNK
            pieces.append((name, piece.start + at, min(CHUNK, piece.length - at), known))
    for name, start, length, known in pieces:
        try:
            data = store.get_range(pack.key, start, length)
        except NotFoundError:
            return read, [f"{pack.key} is missing (it holds {', '.join(sorted({n for n, _ in slices}))})"]
        except DamagedError as error:
            problems.append(f"{error.message} (it holds {name})")
            continue
        read += length
        if digest(data) != known:
            problems.append(f"{name} in {pack.key}: bytes {start}-{start + length} disagree with their digest")
    return read, problems
