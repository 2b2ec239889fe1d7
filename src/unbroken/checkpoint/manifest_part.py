"""Reading as much of a checkpoint's manifest as one of several ranks needs: a few of the rank records, not all.

Which ones, nothing says for certain. Records are read by what is probable, until they hold all that is wanted; in the
end that may be every one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from unbroken.checkpoint.boxes import Box
from unbroken.checkpoint.chunks import READERS
from unbroken.checkpoint.collector import collector_resting
from unbroken.checkpoint.committed import get_committed, load_head, rank_record
from unbroken.checkpoint.coverage import find_flaw
from unbroken.checkpoint.manifest import SHARDED_FORMAT, Manifest, RankRecord, Slice, TensorRecord
from unbroken.checkpoint.rank_records import GetCommitted, put_together, read_at_once
from unbroken.checkpoint.tree import tensor_names
from unbroken.errors import DamagedError
from unbroken.journal import CheckpointRecord
from unbroken.store import Store


def _whole(tensor: TensorRecord) -> Sequence[Box]:
    return [Box.whole(tensor.shape)]


def _anywhere(_: str) -> Iterable[int]:
    return ()


@dataclass(frozen=True)
class Wanted:
    """What a rank wants of a checkpoint.

    Args:
        names: of tensors.
        boxes: which boxes of a tensor; asked once for each, as soon as its shape is known. The whole by default.
        ranks: which ranks of the checkpoint probably wrote a tensor, or what is wanted of it. Only the order in which
            records are read follows from it.
    """

    names: Collection[str]
    boxes: Callable[[TensorRecord], Sequence[Box]] = _whole
    ranks: Callable[[str], Iterable[int]] = _anywhere


def everything(manifest: Manifest, rank: int) -> Wanted:
    """All tensors that the state of a rank names, whole."""
    local = manifest.locals[rank] if rank < manifest.world_size else {}
    return Wanted(tensor_names([manifest.state, local]))


def load_manifest_part(
    store: Store,
    record: CheckpointRecord,
    *,
    rank: int,
    world_size: int,
    wanted: Callable[[Manifest], Wanted] | None = None,
) -> Manifest:
    """The manifest with those slices that one rank needs, at a small part of the requests where it needs little.

    Of format 1 it is the whole manifest.

    Args:
        rank: who reads, from 0.
        world_size: how many ranks there are now; any number may have written the checkpoint.
        wanted: says what is needed, by the manifest's head: without tensors and packs, and with the own trees
            (``locals``) of rank 0 and of this rank, if there was one of its number. By default :func:`everything`.

    Returns:
        the manifest with the tensors that are wanted, of which the slices that were read cover the boxes, each element
        once. The trees of ranks whose records were not read are None.

    Raises:
        DamagedError: what is needed is not there, is not what was committed, or contradicts itself. A record that is
            not needed may be damaged or missing.
        FormatError: a newer version wrote it.
        StoreError: the storage failed.
    """
    head = load_head(store, record)
    if head.format < SHARDED_FORMAT:
        return head
    work = _Reading(store, record.event.manifest, head)
    first, last = _alike(rank, world_size, head.world_size)
    needed = [0, rank] if rank < head.world_size else [0]
    work.read([*needed, *range(first, last)], needed)
    locals_ = [work.records[at].local if at in needed else None for at in range(head.world_size)]
    head = msgspec.structs.replace(head, locals=locals_)
    work.want(wanted(head) if wanted is not None else everything(head, rank), around=first)
    return work.finish()


def _alike(rank: int, world_size: int, before: int) -> tuple[int, int]:
    """The ranks of another number of them that hold the same part of a tensor cut along them: first, and after last."""
    first = min(rank * before // world_size, before - 1)
    return first, min(max(first + 1, -(-(rank + 1) * before // world_size)), before)


@dataclass
class _Tensor:
    """A tensor that is wanted, as far as it is known."""

    record: TensorRecord
    boxes: Sequence[Box]
    missing: list[int]
    """Elements of each box that no slice was seen of. Below 0 where slices overlap."""
    seen: list[tuple[int, Slice]] = field(default_factory=list)
    """Slices, and the ranks that wrote them."""

    @classmethod
    def of(cls, record: TensorRecord, wanted: Wanted) -> _Tensor:
        boxes = wanted.boxes(record)
        return cls(record, boxes, [box.size for box in boxes])

    def add(self, rank: int, held: TensorRecord) -> None:
        if (held.dtype, held.shape) != (self.record.dtype, self.record.shape):
            raise _contradiction(
                f"{held.name} is a {held.dtype} of shape {held.shape} on rank {rank}, and a {self.record.dtype} of "
                f"shape {self.record.shape} on rank {self.seen[0][0] if self.seen else 'before'}"
            )
        whole = Box.whole(held.shape)
        for piece in held.slices:
            if len(piece.offset) != len(piece.shape) or not whole.holds(there := _box(piece)):
                raise _contradiction(f"a slice of {held.name} on rank {rank} is outside of it")
            self.seen.append((rank, piece))
            for number, box in enumerate(self.boxes):
                if (common := box.intersection(there)) is not None:
                    self.missing[number] -= common.size

    def guesses(self, world_size: int, tried: Collection[int]) -> Iterator[range]:
        """Ranks that may have what is missing, were all cut as the largest slice seen is: one part each, in the order
        of ranks; and where that is not so, in groups of ranks."""
        if not self.seen:
            return
        rank, piece = max(self.seen, key=lambda each: each[1].length)
        cut = [at for at, length in enumerate(piece.shape) if 0 < length < self.record.shape[at]]
        for box, missing in zip(self.boxes, self.missing, strict=True):
            if missing > 0 and cut:
                at, length = cut[0], piece.shape[cut[0]]
                first, last = box.offset[at] // length, -(-(box.offset[at] + box.shape[at]) // length)
                shift, parts = rank - piece.offset[at] // length, -(-self.record.shape[at] // length)
                near = range(max(0, first + shift), max(0, min(last + shift, world_size)))
                yield near
                if all(rank in tried for rank in near):
                    yield range(first * world_size // parts, min(last * world_size // parts, world_size))

    def demand(self) -> None:
        """Refuse slices that do not make up the boxes, each element once."""
        for box in self.boxes:
            if box.size:
                clipped = [cut for _, piece in self.seen if (cut := _clipped(piece, box)) is not None]
                flaw = find_flaw(TensorRecord(self.record.name, self.record.dtype, list(box.shape), clipped))
                if flaw is not None:
                    raise _contradiction(f"{self.record.name} at {list(box.offset)}: {flaw.text}")


class _Reading:
    """The records that were read, and what is missing still."""

    def __init__(self, store: Store, key: str, head: Manifest) -> None:
        self._get = partial(get_committed, store)
        self._key = key
        self._head = head
        self._damage: dict[int, DamagedError] = {}
        self._wanted = Wanted(())
        self._unknown: dict[str, None] = {}
        """Names of which no record was seen; as a dictionary, for their order."""
        self._tensors: dict[str, _Tensor] = {}
        self._partly: dict[str, _Tensor] = {}
        self.records: dict[int, RankRecord] = {}

    def read(self, ranks: Iterable[int], needed: Collection[int] = ()) -> None:
        """Read records at once. One that is damaged is of no matter, as long as it is not needed."""
        refs = {self._head.ranks[rank].key: rank for rank in ranks if rank not in self.records}
        expected = {key: self._head.ranks[rank].sha256 for key, rank in refs.items()}
        data = read_at_once(partial(_get_or_damage, self._get, expected), list(refs))
        with collector_resting:
            for key, rank in refs.items():
                found = data.pop(key)
                try:
                    if isinstance(found, DamagedError):
                        raise found
                    self.records[rank] = rank_record(self._head, rank, found)
                except DamagedError as error:
                    if rank in needed:
                        raise
                    self._damage[rank] = error
                else:
                    self._take(self.records[rank])

    def want(self, wanted: Wanted, *, around: int) -> None:
        """Read on until everything is there.

        Args:
            around: the rank near which anything may be of which nothing better is known.
        """
        self._wanted, self._unknown = wanted, dict.fromkeys(wanted.names)
        for record in list(self.records.values()):
            self._take(record)
        others = sorted(range(self._head.world_size), key=lambda rank: abs(rank - around))
        count = READERS
        while self._unknown or self._partly:
            tried = self.records.keys() | self._damage.keys()
            batch = self._probable(tried) - tried
            if not batch:
                batch = set([rank for rank in others if rank not in tried][:count])
                count *= 2
            if not batch:
                raise self._lacking()
            self.read(sorted(batch))

    def finish(self) -> Manifest:
        """What was read, put together and held to what must be true of it."""
        for tensor in self._tensors.values():
            tensor.demand()
        records = [
            msgspec.structs.replace(record, tensors=[held for held in record.tensors if held.name in self._tensors])
            for _, record in sorted(self.records.items())
        ]
        locals_ = [self.records[at].local if at in self.records else None for at in range(self._head.world_size)]
        return msgspec.structs.replace(put_together(self._head, records, self._key), locals=locals_)

    def _take(self, record: RankRecord) -> None:
        for held in record.tensors:
            if held.name in self._unknown:
                del self._unknown[held.name]
                self._tensors[held.name] = _Tensor.of(held, self._wanted)
                self._partly[held.name] = self._tensors[held.name]
            if (tensor := self._tensors.get(held.name)) is not None:
                tensor.add(record.rank, held)
                if not any(missing > 0 for missing in tensor.missing):
                    self._partly.pop(held.name, None)

    def _probable(self, tried: Collection[int]) -> set[int]:
        count, found = self._head.world_size, set[int]()
        for name in [*self._unknown, *self._partly]:
            found.update(rank for rank in self._wanted.ranks(name) if 0 <= rank < count)
        for tensor in self._partly.values():
            found.update(*tensor.guesses(count, tried))
        return found

    def _lacking(self) -> DamagedError:
        if self._damage:
            return self._damage[min(self._damage)]
        if self._unknown:
            return _contradiction(f"the state names the tensor {next(iter(self._unknown))}, which is in no pack")
        name, tensor = next(iter(self._partly.items()))
        return _contradiction(f"the slices of {name} of shape {tensor.record.shape} leave elements out")


def _get_or_damage(get: GetCommitted, expected: dict[str, str], key: str) -> bytes | DamagedError:
    try:
        return get(key, expected[key])
    except DamagedError as error:
        return error


def _box(piece: Slice) -> Box:
    return Box(tuple(piece.offset), tuple(piece.shape))


def _clipped(piece: Slice, box: Box) -> Slice | None:
    """What of a slice lies in a box, as a slice of the box alone."""
    common = _box(piece).intersection(box)
    if common is None:
        return None
    offset = [begin - start for begin, start in zip(common.offset, box.offset, strict=True)]
    return msgspec.structs.replace(piece, offset=offset, shape=list(common.shape))


def _contradiction(text: str) -> DamagedError:
    return DamagedError(f"the records contradict themselves: {text}", kind="manifest")
