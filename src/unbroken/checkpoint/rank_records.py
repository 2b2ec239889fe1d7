"""Rank records: reading what each rank of a checkpoint made durable, and putting the parts together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from unbroken.checkpoint.chunks import READERS
from unbroken.checkpoint.contradictions import in_parts
from unbroken.checkpoint.manifest import (
    FORMAT,
    SHARDED_FORMAT,
    Manifest,
    PackRecord,
    RankRecord,
    Slice,
    TensorRecord,
)
from unbroken.checkpoint.parallel import in_threads
from unbroken.checkpoint.versions import require_format
from unbroken.errors import DamagedError

Read = TypeVar("Read")

_RECORD = msgspec.json.Decoder(RankRecord)

GetCommitted = Callable[[str, str], bytes]
"""Gives the bytes of an object by its key and SHA-256, or raises DamagedError."""


def decode_rank_record(data: bytes, key: str) -> RankRecord:
    """Read the bytes of a rank record. No index or size in it leads astray.

    Raises:
        DamagedError: the bytes are no rank record, or what they say cannot be true.
        FormatError: a newer version wrote it.
    """
    try:
        record = _RECORD.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        require_format(data, key)
        raise DamagedError(f"{key} is no rank record ({error})", kind="rank-record") from error
    if record.format > FORMAT:
        require_format(data, key)
    for found in in_parts(record.tensors, record.packs):
        raise DamagedError(f"{key} contradicts itself: {found}", kind="rank-record")
    return record


class _Packs(msgspec.Struct):
    packs: list[PackRecord]


_PACKS = msgspec.json.Decoder(_Packs)


def decode_packs(data: bytes, key: str) -> list[PackRecord]:
    """What a rank record lists of packs.

    Raises:
        DamagedError: the bytes are no rank record, or name as a pack what cannot be one.
        FormatError: a newer version wrote it.
    """
    require_format(data, key)
    try:
        packs = _PACKS.decode(data).packs
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DamagedError(f"{key} is no rank record ({error})", kind="rank-record") from error
    for found in in_parts([], packs):
        raise DamagedError(f"{key} contradicts itself: {found}", kind="rank-record")
    return packs


def require_place(record: RankRecord, key: str, *, attempt: int, step: int, rank: int, world_size: int) -> None:
    """Refuse a record that is of another rank or save than the one for which it was read.

    Raises:
        DamagedError: says what it is of.
    """
    says = record.attempt, record.step, record.rank, record.world_size
    if says != (attempt, step, rank, world_size) or record.format != SHARDED_FORMAT:
        raise DamagedError(
            f"{key} is of attempt {record.attempt}, step {record.step}, rank {record.rank} of {record.world_size} "
            f"in format {record.format}, where rank {rank} of {world_size} belongs",
            kind="rank-record",
        )


def read_at_once(read: Callable[[str], Read], keys: Sequence[str]) -> dict[str, Read]:
    """What ``read`` gives for each key, several at a time; its first error is raised."""
    found: dict[str, Read] = {}

    def read_one(key: str) -> None:
        found[key] = read(key)

    if keys:
        in_threads(read_one, keys, threads=READERS, name="unbroken-ranks")
    return found


def collect(ranks: Iterable[Sequence[TensorRecord]]) -> tuple[dict[str, TensorRecord], list[str]]:
    """Put what each rank has of the tensors together.

    Returns:
        the tensors by name, slices in the order of ranks, with ``pack`` as the ranks have it; and what is wrong: ranks
        that do not agree on a tensor's type or shape.
    """
    whole: dict[str, TensorRecord] = {}
    wrong: list[str] = []
    for rank, tensors in enumerate(ranks):
        for tensor in tensors:
            held = whole.get(tensor.name)
            if held is None:
                whole[tensor.name] = TensorRecord(tensor.name, tensor.dtype, tensor.shape, [*tensor.slices])
            elif held.shape == tensor.shape and held.dtype == tensor.dtype:
                held.slices.extend(tensor.slices)
            else:
                wrong.append(
                    f"{tensor.name} is a {tensor.dtype} of shape {tensor.shape} on rank {rank}, "
                    f"and a {held.dtype} of shape {held.shape} on a lower one"
                )
    return whole, wrong


def put_together(head: Manifest, records: Sequence[RankRecord], key: str) -> Manifest:
    """The manifest with the parts that its rank records list.

    Args:
        head: as its object in the store has it, without tensors and packs.
        records: by rank.
        key: of the manifest.

    Raises:
        DamagedError: the parts do not fit together.
    """
    places: dict[str, int] = {}
    packs: list[PackRecord] = []
    whole, wrong = collect([list(_placed(record, places, packs)) for record in records])
    if wrong:
        raise DamagedError(f"{key} contradicts itself: {wrong[0]}", kind="manifest")
    return msgspec.structs.replace(
        head, tensors=list(whole.values()), packs=packs, locals=[record.local for record in records]
    )


def _placed(record: RankRecord, places: dict[str, int], packs: list[PackRecord]) -> Iterator[TensorRecord]:
    """The record's tensors, with ``pack`` an index into ``packs``, to which it adds its own."""
    index = []
    for pack in record.packs:
        if pack.key not in places:
            places[pack.key] = len(packs)
            packs.append(pack)
        elif packs[places[pack.key]] != pack:
            raise DamagedError(f"two ranks list the pack {pack.key}, and not alike", kind="rank-record")
        index.append(places[pack.key])
    for tensor in record.tensors:
        slices = [
            Slice(piece.offset, piece.shape, index[piece.pack], piece.start, piece.length, piece.digests)
            for piece in tensor.slices
        ]
        yield TensorRecord(tensor.name, tensor.dtype, tensor.shape, slices)
