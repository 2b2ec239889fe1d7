"""Reading the small objects that the journal, or a manifest, names with their SHA-256."""

from __future__ import annotations

from functools import partial

import msgspec

from unbroken.checkpoint.collector import collector_resting
from unbroken.checkpoint.contradictions import contradictions, in_head, in_refs
from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.manifest import SHARDED_FORMAT, Manifest, RankRecord
from unbroken.checkpoint.rank_records import (
    GetCommitted,
    decode_packs,
    decode_rank_record,
    put_together,
    read_at_once,
    require_place,
)
from unbroken.checkpoint.versions import require_format
from unbroken.errors import DamagedError, NotFoundError, StoreError
from unbroken.journal import CheckpointRecord
from unbroken.store import Store

_MANIFEST = msgspec.json.Decoder(Manifest)


def get_committed(store: Store, key: str, expected: str) -> bytes:
    """The bytes of an object whose SHA-256 is known.

    Raises:
        DamagedError: it is not there, or its bytes are not those that were committed.
    """
    try:
        data = store.get(key)
    except NotFoundError as error:
        if error.kind != "object":  # the bucket or the folder itself is away, which says nothing of the object
            raise
        raise DamagedError(f"{key} is missing from {store.uri}, though it was committed", kind="missing") from error
    except StoreError as error:
        if error.kind != "key":
            raise
        raise DamagedError(error.message, kind="key") from error
    if sha256(data) != expected:
        raise DamagedError(f"{key} in {store.uri} is not what was committed (SHA-256 differs)", kind="sha256")
    return data


def load_manifest(store: Store, record: CheckpointRecord) -> Manifest:
    """Read the manifest that a journal entry committed, and the records of its ranks where it was written by several.

    Raises:
        DamagedError: one is not there, its bytes are not those that were committed, or it contradicts itself.
        FormatError: a newer version wrote it.
    """
    key, get = record.event.manifest, partial(get_committed, store)
    return decode_manifest(get(key, record.event.sha256), key, get)


def decode_manifest(data: bytes, key: str, get: GetCommitted) -> Manifest:
    """Read manifest bytes. What is returned can be followed blindly: no index or size in it leads astray.

    Args:
        data: the manifest.
        key: its key, for messages.
        get: gives rank records; not asked for format 1.

    Raises:
        DamagedError: the bytes are no manifest, or what they say cannot be true.
        FormatError: a newer version wrote it.
    """
    manifest = _decode(data, key)
    if manifest.format >= SHARDED_FORMAT:
        _demand_no_parts(manifest, key)
        expected = {ref.key: ref.sha256 for ref in manifest.ranks}
        data_of = read_at_once(lambda ref: get(ref, expected[ref]), list(expected))
        with collector_resting:
            records = [rank_record(manifest, rank, data_of.pop(ref)) for rank, ref in enumerate(expected)]
            return _sound(put_together(manifest, records, key), key)
    return _sound(manifest, key)


def load_head(store: Store, record: CheckpointRecord) -> Manifest:
    """The manifest as it stands in its object: of format 2 without tensors, packs and ``locals``; of format 1 all.

    Raises:
        DamagedError: as :func:`load_manifest`, of that object.
        FormatError: a newer version wrote it.
    """
    key = record.event.manifest
    manifest = _decode(get_committed(store, key, record.event.sha256), key)
    if manifest.format < SHARDED_FORMAT:
        return _sound(manifest, key)
    _demand_no_parts(manifest, key)
    for found in in_head(manifest):
        raise DamagedError(f"{key} contradicts itself: {found}", kind="manifest")
    return manifest


def load_rank_part(store: Store, record: CheckpointRecord, rank: int) -> Manifest:
    """The manifest with only those slices, and that tree, which ``rank`` wrote: enough for it to refer to what did not
    change, at a small part of the requests. It cannot be restored from. Of format 1 it is the whole manifest.

    Raises:
        DamagedError: as :func:`load_manifest`.
        FormatError: a newer version wrote it.
    """
    manifest = load_head(store, record)
    if manifest.format < SHARDED_FORMAT or rank >= manifest.world_size:
        return manifest
    ref = manifest.ranks[rank]
    part = rank_record(manifest, rank, get_committed(store, ref.key, ref.sha256))
    own = [part.local if number == rank else None for number in range(manifest.world_size)]
    return msgspec.structs.replace(manifest, tensors=part.tensors, packs=part.packs, locals=own)


def load_needed(store: Store, record: CheckpointRecord) -> dict[str, int]:
    """Bytes of each object that a checkpoint needs, by key: packs, rank records (0: not known), manifest (0).

    Of format 2 this looks only at what the records list of packs: a small part of the memory and time of
    :func:`load_manifest`.

    Raises:
        DamagedError: as :func:`load_manifest`, but for what tensors say.
        FormatError: a newer version wrote it.
    """
    key, get = record.event.manifest, partial(get_committed, store)
    data = get(key, record.event.sha256)
    manifest = _decode(data, key)
    if manifest.format < SHARDED_FORMAT:
        manifest = decode_manifest(data, key, get)
        packs = manifest.packs
    else:
        _demand_no_parts(manifest, key)
        expected = {ref.key: ref.sha256 for ref in manifest.ranks}
        listed = read_at_once(lambda ref: decode_packs(get(ref, expected[ref]), ref), list(expected))
        packs = [pack for each in listed.values() for pack in each]
    return {pack.key: pack.size for pack in packs} | dict.fromkeys((ref.key for ref in manifest.ranks), 0) | {key: 0}


def _decode(data: bytes, key: str) -> Manifest:
    require_format(data, key)
    try:
        return _MANIFEST.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DamagedError(f"{key} is no manifest ({error})", kind="manifest") from error


def _demand_no_parts(manifest: Manifest, key: str) -> None:
    if manifest.tensors or manifest.packs or manifest.locals:
        raise DamagedError(f"{key} lists parts that belong into the records of its ranks", kind="manifest")
    named = {ref.key for ref in manifest.ranks}
    if not len(named) == len(manifest.ranks) == manifest.world_size:
        raise DamagedError(f"{key} names {len(named)} records of {manifest.world_size} ranks", kind="manifest")
    for found in in_refs(manifest.ranks):
        raise DamagedError(f"{key} contradicts itself: {found}", kind="manifest")


def _sound(manifest: Manifest, key: str) -> Manifest:
    for found in contradictions(manifest):
        raise DamagedError(f"{key} contradicts itself: {found}", kind="manifest")
    return manifest


def rank_record(manifest: Manifest, rank: int, data: bytes) -> RankRecord:
    """Read the bytes that a manifest names as the record of a rank.

    Raises:
        DamagedError: they are none, or one of another rank or save.
        FormatError: a newer version wrote it.
    """
    key = manifest.ranks[rank].key
    record = decode_rank_record(data, key)
    require_place(record, key, attempt=manifest.attempt, step=manifest.step, rank=rank, world_size=manifest.world_size)
    return record
