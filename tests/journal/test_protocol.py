"""The append protocol under every order of events that hypothesis can think of.

Several writers work on one store. Any put may fail before or after it took effect, be answered with a refusal
although it took effect, be refused for nothing, or arrive much later; claims come at any time; a rogue breaks the
protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from unbroken.errors import FencedError, NotFoundError, StoreError
from unbroken.journal import Entry, Event, Journal, Lease, Origin
from unbroken.journal.events import AttemptClaimed, CheckpointCommitted, encode_entry
from unbroken.journal.journal import entry_key
from unbroken.store import ObjectInfo
from unbroken.store.store import Buffer, OnPiece
from unbroken.testing import FakeClock

Fault = Literal["none", "failed", "lost", "retried", "refused", "late"]

WRITERS = 3
HOST = Origin("host", 1)


class MemoryStore:
    """Objects in a dictionary, with the fault that the next put of a journal entry meets."""

    def __init__(self, objects: dict[str, bytes], late: list[tuple[str, bytes]]) -> None:
        self.uri = "memory"
        self.fault: Fault = "none"
        self._objects = objects
        self._late = late

    def create(self, key: str, data: bytes) -> bool:
        fault, self.fault = self.fault, "none"
        if fault == "failed":
            raise StoreError("the put failed")
        if fault == "refused":
            return False
        if fault == "late":
            self._late.append((key, data))
            raise StoreError("the put timed out, and is still under way")
        created = key not in self._objects
        if created:
            self._objects[key] = data
        if fault == "lost":
            raise StoreError("the reply was lost")
        return created and fault != "retried"

    def put(self, key: str, parts: Sequence[Buffer], *, on_piece: OnPiece | None = None) -> None:
        self._objects[key] = b"".join(parts)

    def get(self, key: str) -> bytes:
        if key not in self._objects:
            raise NotFoundError(key, kind="object")
        return self._objects[key]

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        return memoryview(self.get(key))[start : start + length]

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        keys = sorted(key for key in self._objects if key.startswith(prefix + "/") and key > after)
        return iter([ObjectInfo(key, len(self._objects[key])) for key in keys])

    def delete(self, keys: Sequence[str]) -> None:
        raise AssertionError("nothing in a journal is deleted")


_writer = st.integers(0, WRITERS - 1)
_fault: st.SearchStrategy[Fault] = st.sampled_from(["none", "failed", "lost", "retried", "refused", "late"])


class Protocol(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.late: list[tuple[str, bytes]] = []
        self.stores = [MemoryStore(self.objects, self.late) for _ in range(WRITERS)]
        self.leases: list[Lease] = []
        self.appended: list[Entry] = []
        self.failed: set[str] = set()
        self.rogue: set[int] = set()
        self.count = 0

    @initialize()
    def open_all(self) -> None:
        self.journals = [Journal.create(store, clock=FakeClock()) for store in self.stores]

    def reader(self) -> Journal:
        return Journal.open(MemoryStore(self.objects, []))

    @rule(writer=_writer, fault=_fault)
    def claim(self, writer: int, fault: Fault) -> None:
        self.stores[writer].fault = fault
        try:
            lease = self.journals[writer].claim(HOST)
        except StoreError:
            assert fault in ("failed", "lost", "late")
            return
        finally:
            self.stores[writer].fault = "none"
        assert not self.reader().state.fences(lease.attempt, lease.claim)
        self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(writer=_writer, data=st.data(), fault=_fault)
    def append(self, writer: int, data: st.DataObject, fault: Fault) -> None:
        """With any lease: the writer's own, an old one, or one that another journal claimed."""
        lease = data.draw(st.sampled_from(self.leases))
        self.count += 1
        event = CheckpointCommitted(self.count, f"manifest-{self.count}", "sha", 1, 1)
        self.stores[writer].fault = fault
        try:
            entry = self.journals[writer].append(event, HOST, lease)
        except FencedError:
            assert self.reader().state.fences(lease.attempt, lease.claim)
            self.failed.add(event.manifest)
        except StoreError:
            assert fault in ("failed", "lost", "late")
        else:
            assert not self.reader().state.fences(lease.attempt, lease.claim)
            self.appended.append(entry)
        finally:
            self.stores[writer].fault = "none"

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def a_late_put_arrives(self, data: st.DataObject) -> None:
        key, body = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        self.objects.setdefault(key, body)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def a_zombie_writes_past_the_protocol(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        reader = self.reader()
        if not reader.state.fences(lease.attempt, lease.claim):
            return
        events: list[Event] = [CheckpointCommitted(0, "stolen", "sha", 1, 1), AttemptClaimed(["again"])]
        event = data.draw(st.sampled_from(events))
        n = reader.state.tail + 1
        entry = Entry(n, lease.attempt, lease.claim, f"rogue-{n}", 0.0, HOST, event)
        self.objects[entry_key(n)] = encode_entry(entry)
        self.rogue.add(n)

    @rule(writer=_writer)
    def refresh(self, writer: int) -> None:
        self.journals[writer].refresh()
        assert self.journals[writer].state == self.reader().state

    @invariant()
    def what_is_read_is_what_was_written(self) -> None:
        if not self.objects:
            return
        reader = self.reader()
        keys = sorted(key for key in self.objects if key.startswith("journal/"))
        assert keys == [entry_key(n) for n in range(1, len(keys) + 1)]
        assert {entry.n for entry in reader.state.ignored} == self.rogue
        for entry in self.appended:
            assert reader.entries[entry.n - 1] == entry
        manifests = [record.event.manifest for record in reader.state.commits]
        assert len(set(manifests)) == len(manifests)
        assert not self.failed & set(manifests)
        assert "stolen" not in manifests

    @invariant()
    def commits_belong_to_the_owner_of_their_moment(self) -> None:
        owner = 0
        for entry in self.reader().entries if self.objects else []:
            if entry.n in self.rogue:
                continue
            if isinstance(entry.event, AttemptClaimed):
                assert entry.attempt == owner + 1
                owner = entry.attempt
            assert entry.attempt == owner


Protocol.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestProtocol = Protocol.TestCase
