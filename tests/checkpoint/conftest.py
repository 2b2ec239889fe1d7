"""What the tests of checkpoints share: attempts that save made-up states, and readers that begin from nothing."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from unbroken.checkpoint import (
    CheckpointWriter,
    HostState,
    HostTensor,
    Manifest,
    Metrics,
    TensorRef,
    decode_tree,
    encode_tree,
    read_tensors,
    restore_newest,
)
from unbroken.checkpoint.dtypes import item_size
from unbroken.errors import DamagedError
from unbroken.journal import CheckpointRecord, Journal, Origin
from unbroken.journal.events import CheckpointCommitted
from unbroken.store import ObjectInfo, Store, open_store
from unbroken.store.store import Buffer, OnPiece
from unbroken.testing import FakeClock

Content = dict[str, bytes]
"""A state by tensor name."""


def tensor(name: str, data: bytes, dtype: str = "uint8", shape: tuple[int, ...] | None = None) -> HostTensor:
    """A tensor in host memory; one dimension unless told otherwise."""
    count = len(data) // item_size(dtype)
    return HostTensor(name, dtype, (count,) if shape is None else shape, memoryview(data))


def tensor_of(name: str, dtype: str, shape: tuple[int, ...], seed: int = 0) -> HostTensor:
    """A tensor of bytes that differ from place to place and from seed to seed."""
    size = math.prod(shape) * item_size(dtype)
    return tensor(name, bytes((i * 7 + i // 251 + seed * 31) % 256 for i in range(size)), dtype, shape)


def state_of(step: int, tensors: Sequence[HostTensor], metrics: Metrics | None = None) -> HostState:
    """A state whose tree names every tensor, and the step."""
    tree = {"model": {each.name: TensorRef(each.name) for each in tensors}, "step": step}
    return HostState(step, encode_tree(tree), tensors, metrics or {})


@dataclass
class Attempt:
    """One attempt of the run in a store, by the package's own journal and writer."""

    store: Store
    host: str = "host"
    journal: Journal = field(init=False)
    writer: CheckpointWriter = field(init=False)

    def __post_init__(self) -> None:
        clock = FakeClock()
        origin = Origin(self.host, 1)
        self.journal = Journal.create(self.store, clock=clock)
        self.lease = self.journal.claim(origin)
        self.writer = CheckpointWriter(self.journal, self.lease, origin, clock=clock)

    def save(self, step: int, content: Content, metrics: Metrics | None = None) -> CheckpointCommitted:
        tensors = [tensor(name, data) for name, data in content.items()]
        return self.writer.write(state_of(step, tensors, metrics))

    def restore(self) -> Restored | None:
        """Load the newest sound checkpoint and go on from it."""
        found = restore(self.store, self.journal)
        if found is not None:
            self.writer.continue_from(found.record, found.manifest)
        return found


@dataclass(frozen=True)
class Restored:
    """What a reader got."""

    record: CheckpointRecord
    manifest: Manifest
    content: Content
    passed_over: list[tuple[int, DamagedError]]

    @property
    def step(self) -> int:
        return self.record.step

    @property
    def tree(self) -> Any:
        return decode_tree(self.manifest.state)


def restore(store: Store, journal: Journal | None = None) -> Restored | None:
    """The newest sound checkpoint, as a reader sees it that knows nothing but the store."""
    state = (journal or Journal.open(store)).state
    passed_over: list[tuple[int, DamagedError]] = []

    def load(_: CheckpointRecord, manifest: Manifest) -> Content:
        return {name: bytes(data) for name, data in read_tensors(store, manifest).items()}

    found = restore_newest(
        store, state, load, on_damaged=lambda record, error: passed_over.append((record.step, error))
    )
    return Restored(*found, passed_over) if found else None


class WatchedStore:
    """A store that calls ``before`` ahead of every call that it passes on."""

    def __init__(self, store: Store, before: Callable[[str, str], None] | None = None) -> None:
        self._store = store
        self.before: Callable[[str, str], None] = before or (lambda _method, _key: None)

    @property
    def uri(self) -> str:
        return self._store.uri

    def create(self, key: str, data: bytes) -> bool:
        self.before("create", key)
        return self._store.create(key, data)

    def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
        self.before("put", key)
        self._store.put(key, parts, on_piece=on_piece)

    def get(self, key: str) -> bytes:
        self.before("get", key)
        return self._store.get(key)

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        self.before("get_range", key)
        return self._store.get_range(key, start, length)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        self.before("list", prefix)
        return self._store.list(prefix, after=after)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.before("delete", key)
        self._store.delete(keys)


class OrderedStore(WatchedStore):
    """A store that makes puts which are under way together take place one after another, in a given order.

    While ``order`` is set, to the first components of keys, a put of each waits until one of every earlier has ended.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.order: tuple[str, ...] = ()
        self._ended: set[str] = set()
        self._change = threading.Condition()

    def arrange(self, *order: str) -> None:
        with self._change:
            self.order = order
            self._ended.clear()

    def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
        name = key.split("/", maxsplit=1)[0]
        earlier = set(self.order[: self.order.index(name)]) if name in self.order else set()
        with self._change:
            assert self._change.wait_for(lambda: earlier <= self._ended, timeout=60), f"{key} before {earlier}"
        try:
            super().put(key, parts, on_piece=on_piece)
        finally:
            with self._change:
                self._ended.add(name)
                self._change.notify_all()


@pytest.fixture
def store(store_uri: str) -> Store:
    """An empty store, once in a folder and once on the S3 server."""
    return open_store(store_uri, create=True)


@pytest.fixture
def folder_store(tmp_path: Any) -> Store:
    """An empty store in a folder, for what does not depend on the kind of store."""
    return open_store(str(tmp_path / "run"), create=True)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of 64 bytes instead of 16 MiB, everywhere: many of them in small tensors."""
    size = 64
    for module in ("digest", "chunks"):
        monkeypatch.setattr(f"unbroken.checkpoint.{module}.CHUNK", size)
    return size
