"""Making one checkpoint of what several ranks made durable: finding their records, and committing them, once.

Nobody is told to do it and nobody waits: key and bytes of the manifest follow from the records alone, and the journal
takes one commit of an attempt for a step, so that any number of processes may do it at the same time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from unbroken.checkpoint.collector import collector_resting
from unbroken.checkpoint.coverage import find_flaw
from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.manifest import SHARDED_FORMAT, Manifest, RankRecord, RankRef, TensorRecord
from unbroken.checkpoint.rank_records import collect, decode_rank_record, read_at_once, require_place
from unbroken.checkpoint.rank_writer import RankDurable
from unbroken.checkpoint.tree import tensor_names
from unbroken.checkpoint.uploads import Upload, put_all
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import DamagedError, MismatchError, NotFoundError
from unbroken.journal import Journal, Lease, Origin, RunState
from unbroken.journal.events import CheckpointCommitted
from unbroken.store import Store
from unbroken.store.store import OnPiece

_NAME = re.compile(r"(?P<rank>\d+)-[0-9a-f]+\.json")
_NAMED = 5
"""How many ranks a message names before it only counts."""


def find_rank_records(
    store: Store, attempt: int, step: int, world_size: int, known: Mapping[int, RankDurable]
) -> dict[int, RankDurable]:
    """What ranks have made durable for a step, those of ``known`` included, which are not read again.

    A rank that was written twice (its first write failed after the record, or its reply was lost) has two records of
    the same state: the one with the greater key is taken, by everybody. One that does not read is passed over for the
    next.

    Raises:
        DamagedError: of a rank no record reads, or it says that it is of another rank or save.
        FormatError: a newer version wrote a record: waiting for another would be of no use.
        StoreError: the storage failed.
    """
    keys = {rank: each for rank, each in _written(store, attempt, step, world_size).items() if rank not in known}
    data = read_at_once(partial(_get_or_none, store), [key for each in keys.values() for key in each])
    found_now = dict(known)
    with collector_resting:
        for rank, written in keys.items():
            demand = partial(require_place, attempt=attempt, step=step, rank=rank, world_size=world_size)
            there = [(key, read) for key in sorted(written, reverse=True) if (read := data.pop(key)) is not None]
            if there:
                found_now[rank] = RankDurable(rank, *_first_readable(there, demand))
    return dict(sorted(found_now.items()))


def list_rank_records(store: Store, attempt: int, step: int, world_size: int) -> frozenset[int]:
    """The ranks of which a record is there for a step, read or not: for whoever need not know what they say."""
    return frozenset(_written(store, attempt, step, world_size))


def _written(store: Store, attempt: int, step: int, world_size: int) -> dict[int, list[str]]:
    """Keys of the records of a step, by rank."""
    keys: dict[int, list[str]] = {}
    for info in store.list(f"ranks/{attempt}/{step}"):
        found = _NAME.fullmatch(info.key.rsplit("/", 1)[-1])
        if found is not None and (rank := int(found["rank"])) < world_size:
            keys.setdefault(rank, []).append(info.key)
    return keys


def missing(found: Mapping[int, RankDurable], world_size: int) -> list[int]:
    """The ranks of which nothing is durable yet."""
    return [rank for rank in range(world_size) if rank not in found]


def _get_or_none(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except NotFoundError as error:
        if error.kind != "object":  # the bucket or the folder itself is away
            raise
        return None  # the listing was late


def _first_readable(
    written: Sequence[tuple[str, bytes]], demand: Callable[[RankRecord, str], None]
) -> tuple[RankRef, RankRecord]:
    damage: list[DamagedError] = []
    for key, data in written:
        try:
            record = decode_rank_record(data, key)
            demand(record, key)
            return RankRef(key, sha256(data)), record
        except DamagedError as error:
            damage.append(error)
    raise damage[0]


class _StandsError(Exception):
    """The attempt has a commit of this step already."""

    def __init__(self, event: CheckpointCommitted) -> None:
        super().__init__(event.manifest)
        self.event = event


def commit_ranks(
    journal: Journal,
    lease: Lease,
    origin: Origin,
    durable: Mapping[int, RankDurable],
    *,
    clock: Clock = SYSTEM_CLOCK,
    began_at: float | None = None,
    on_piece: OnPiece | None = None,
) -> CheckpointCommitted:
    """Commit the checkpoint that these records make up, or return the event with which that was done before.

    Safe to call again after any error, and by several processes at once: one entry counts.

    Args:
        journal: of the run, opened for writing.
        lease: of the attempt that wrote the records.
        origin: this process, for the journal.
        durable: of every rank.
        began_at: monotonic seconds at the step boundary, of ``clock``; None: the longest that a rank took.
        on_piece: as in :meth:`~unbroken.checkpoint.CheckpointWriter.write`, for the manifest.

    Raises:
        MismatchError: the ranks do not make up a checkpoint. Kind ``ranks``: one is missing, or is of another save.
            ``shared``: they have an object unlike. ``coverage``: slices of a tensor overlap, leave a hole, or are of
            another type or shape. ``retired``: unchanged slices lie in packs of a checkpoint that was given up
            meanwhile. ``overtaken``: the attempt has committed a later step. The previous commit stands.
        FencedError: a later attempt owns the run.
        StoreError: the storage failed; whether the commit took effect is not known, and the next call finds out.
    """
    parts = [durable[rank] for rank in sorted(durable)]
    records = [part.record for part in parts]
    _demand_all(records, lease)
    unless = partial(_refuse, records)
    try:
        unless(journal.state)  # before anything is put together; what counts is asked again as the entry is added
        with collector_resting:
            size = _demand_whole(records)
        manifest = _manifest(journal.info.run, parts)
        data = msgspec.json.encode(manifest)
        key = f"manifests/{manifest.step:011d}-{manifest.attempt}-{manifest.nonce}.json"
        written = put_all(journal.store, [Upload(key, [data])], on_piece=on_piece)
        event = CheckpointCommitted(
            step=manifest.step, manifest=key, sha256=sha256(data), size=size,
            written=written + sum(record.written for record in records), parent=manifest.parent,
            metrics=records[0].metrics, metrics_sha256=records[0].metrics_sha256,
            stall=max(record.stall for record in records),
            seconds=max(record.seconds for record in records)
            if began_at is None else round(clock.monotonic() - began_at, 6),
        )  # fmt: skip
        journal.append(event, origin, lease, unless=unless)
    except _StandsError as stands:
        return stands.event
    return event


def _demand_all(records: Sequence[RankRecord], lease: Lease) -> None:
    if not records:
        raise MismatchError("no rank has made anything durable", kind="ranks")
    first = records[0]
    for record in records:
        says = record.attempt, record.step, record.world_size, record.format
        if says != (lease.attempt, first.step, first.world_size, SHARDED_FORMAT):
            raise MismatchError(
                f"rank {record.rank} has a record of attempt {record.attempt}, step {record.step} and "
                f"{record.world_size} ranks, which is of another save than rank {first.rank}'s",
                kind="ranks",
            )
    held = [record.rank for record in records]
    if held != list(range(first.world_size)):
        absent = sorted(set(range(first.world_size)) - set(held))
        named = ", ".join(map(str, absent[:_NAMED])) + (", ..." if len(absent) > _NAMED else "")
        raise MismatchError(
            f"{len(absent)} of {first.world_size} ranks have nothing durable of step {first.step}: {named}",
            kind="ranks",
        )


def _refuse(records: Sequence[RankRecord], state: RunState) -> None:
    """Refuse, by raising, to commit to a run in this state."""
    attempt, step = records[0].attempt, records[0].step
    for commit in reversed(state.commits):
        if commit.attempt != attempt:
            break
        if commit.step == step:
            raise _StandsError(commit.event)
        if commit.step > step:
            raise MismatchError(
                f"step {step} comes too late: step {commit.step} of the same attempt is committed", kind="overtaken"
            )
    kept = {record.event.manifest for record in state.checkpoints}
    for record in records:
        if record.refers_to and record.refers_to not in kept:
            raise MismatchError(
                f"rank {record.rank} refers to packs of {record.refers_to}, which was retired meanwhile",
                kind="retired", hint="The save is given up; the next one writes them again",
            )  # fmt: skip


def _demand_whole(records: Sequence[RankRecord]) -> int:
    """Bytes of the checkpoint, if the ranks agree and have all of it between them."""
    first = records[0]
    for record in records:
        if record.shared != first.shared:
            raise _unlike(first, record)
    whole, wrong = collect(record.tensors for record in records)
    for text in [*wrong[:1], *_flaws(records, whole)]:
        raise MismatchError(text, kind="coverage")
    return sum(tensor.size for tensor in whole.values())


def _unlike(first: RankRecord, other: RankRecord) -> MismatchError:
    names = sorted(first.shared.keys() | other.shared.keys())
    name = next(name for name in names if first.shared.get(name) != other.shared.get(name))
    lacking = [record.rank for record in (first, other) if name not in record.shared]
    how = f"rank {lacking[0]} has none" if lacking else "they have it unlike"
    return MismatchError(
        f"{name} of step {first.step} is not one thing on rank {first.rank} and rank {other.rank}: {how}",
        kind="shared", hint=f'Make it alike on all ranks, or let each keep its own: Run(per_rank=("{name}",))',
    )  # fmt: skip


def _flaws(records: Sequence[RankRecord], whole: Mapping[str, TensorRecord]) -> Iterator[str]:
    for tensor in whole.values():
        if (flaw := find_flaw(tensor)) is not None:
            text = f"{tensor.name} of shape {tensor.shape}: {flaw.text}"
            ranks = [
                f"rank {record.rank}"
                for record in records
                for held in record.tensors
                if held.name == tensor.name and any(piece is due for piece in held.slices for due in flaw.slices)
            ]
            yield f"{text} ({' and '.join(ranks)})" if ranks else text
    trees = [records[0].state, *(record.local for record in records)]
    yield from (f"no rank has the tensor {name} of the state" for name in tensor_names(trees) if name not in whole)


def _manifest(run: str, parts: Sequence[RankDurable]) -> Manifest:
    """What is stored as the manifest: a function of the records alone."""
    first = parts[0].record
    digest = sha256("".join(part.ref.sha256 for part in parts).encode())
    return Manifest(
        format=SHARDED_FORMAT, run=run, step=first.step, attempt=first.attempt, nonce=digest[:8],
        created_at=max(part.record.created_at for part in parts), world_size=first.world_size, parent=first.parent,
        state=first.state, tensors=[], packs=[], ranks=[part.ref for part in parts], partial=first.partial,
    )  # fmt: skip
