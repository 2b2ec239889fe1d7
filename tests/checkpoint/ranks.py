"""What the tests of several ranks share: a made-up state cut into boxes, written by each rank and put together again by
plain Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.checkpoint.conftest import tensor

from unbroken.checkpoint import (
    HostState,
    HostTensor,
    Manifest,
    Metrics,
    RankDurable,
    RankWriter,
    TensorRef,
    commit_ranks,
    encode_tree,
    load_rank_part,
)
from unbroken.checkpoint.digest import sha256
from unbroken.checkpoint.dtypes import item_size
from unbroken.journal import Journal, Lease, Origin
from unbroken.journal.events import CheckpointCommitted
from unbroken.store import Store
from unbroken.testing import FakeClock

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""(offset, shape)."""


def cut_out(whole: HostTensor, box: Box) -> bytes:
    """The bytes of a box of a tensor, element by element."""
    item, (offset, shape) = item_size(whole.dtype), box
    strides = [math.prod(whole.shape[d + 1 :]) for d in range(len(shape))]
    picked = bytearray()
    for index in itertools.product(*(range(length) for length in shape)):
        at = item * sum((start + i) * stride for start, i, stride in zip(offset, index, strides, strict=True))
        picked += whole.data[at : at + item]
    return bytes(picked)


def box_of(whole: HostTensor, offset: Sequence[int], shape: Sequence[int]) -> HostTensor:
    """The box of a tensor, as the rank has it to which it belongs."""
    data = memoryview(cut_out(whole, (tuple(offset), tuple(shape))))
    return HostTensor(whole.name, whole.dtype, tuple(shape), data, tuple(offset), whole.shape)


def rows(whole: HostTensor, *lengths: int) -> list[HostTensor]:
    """A tensor cut along its first dimension."""
    ends = list(itertools.accumulate(lengths))
    return [
        box_of(whole, (end - length, *(0 for _ in whole.shape[1:])), (length, *whole.shape[1:]))
        for end, length in zip(ends, lengths, strict=True)
    ]


def reassembled(store: Store, manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each tensor, from its slices; every element of it is set exactly once."""
    found = {}
    for record in manifest.tensors:
        item = item_size(record.dtype)
        elements: list[bytes | None] = [None] * math.prod(record.shape)
        strides = [math.prod(record.shape[d + 1 :]) for d in range(len(record.shape))]
        for piece in record.slices:
            pack = store.get(manifest.packs[piece.pack].key)
            data = pack[piece.start : piece.start + piece.length]
            indices = itertools.product(*(range(length) for length in piece.shape))
            for number, index in enumerate(indices):
                at = sum((o + i) * stride for o, i, stride in zip(piece.offset, index, strides, strict=True))
                assert elements[at] is None
                elements[at] = data[number * item : (number + 1) * item]
        assert None not in elements, record.name
        found[record.name] = record.dtype, tuple(record.shape), b"".join(each or b"" for each in elements)
    return found


def truth(tensors: Iterable[HostTensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The same of tensors that are whole."""
    return {each.name: (each.dtype, each.shape, bytes(each.data)) for each in tensors}


def rank_state(
    step: int,
    rank: int,
    world_size: int,
    held: Sequence[HostTensor],
    names: Sequence[str],
    metrics: Metrics | None = None,
    shared: dict[str, str] | None = None,
) -> HostState:
    """What a rank has of a state: ``held``, and a generator of its own. ``names`` are of all ranks' tensors."""
    tree: Any = encode_tree({"model": {name: TensorRef(name) for name in names}, "step": step})
    own = tensor(f"rank{rank}/rng", bytes([rank, step % 256]))
    local = encode_tree({"rng": TensorRef(own.name)})
    digests = {name: sha256(str(node).encode()) for name, node in tree.items()} if shared is None else shared
    return HostState(
        step, tree, [*held, own], metrics or {}, stall=rank / 10, rank=rank, world_size=world_size, local=local,
        shared=digests,
    )  # fmt: skip


@dataclass
class Gang:
    """An attempt of several ranks, each with a writer, and one journal for all."""

    store: Store
    world_size: int
    journal: Journal = field(init=False)
    lease: Lease = field(init=False)
    writers: list[RankWriter] = field(init=False)
    origin: Origin = field(default_factory=lambda: Origin("host", 1))
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.journal = Journal.create(self.store, clock=self.clock)
        self.lease = self.journal.claim(self.origin)
        self.writers = [
            RankWriter(
                self.journal, self.lease, self.origin, rank=rank, world_size=self.world_size, clock=self.clock
            )
            for rank in range(self.world_size)
        ]  # fmt: skip

    def states(
        self, step: int, held: Sequence[Sequence[HostTensor]], metrics: Metrics | None = None
    ) -> list[HostState]:
        names = list(dict.fromkeys(each.name for part in held for each in part))
        return [rank_state(step, rank, self.world_size, part, names, metrics) for rank, part in enumerate(held)]

    def write(
        self, step: int, held: Sequence[Sequence[HostTensor]], metrics: Metrics | None = None
    ) -> dict[int, RankDurable]:
        """What each rank holds, written by each."""
        states = self.states(step, held, metrics)
        return {state.rank: writer.write(state) for writer, state in zip(self.writers, states, strict=True)}

    def commit(self, durable: Mapping[int, RankDurable], **options: Any) -> CheckpointCommitted:
        return commit_ranks(self.journal, self.lease, self.origin, durable, clock=self.clock, **options)

    def save(
        self, step: int, held: Sequence[Sequence[HostTensor]], metrics: Metrics | None = None
    ) -> CheckpointCommitted:
        """Write and commit, and go on from there."""
        event = self.commit(self.write(step, held, metrics))
        self.go_on()
        return event

    def go_on(self) -> None:
        """Let every rank continue from the newest commit, by its own part of it."""
        record = self.journal.state.checkpoints[-1]
        for writer in self.writers:
            writer.continue_from(record, load_rank_part(self.store, record, writer.rank))
