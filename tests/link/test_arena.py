"""What was sealed is read as it was written, by any process that holds the descriptor; nothing else is."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from unbroken.checkpoint import HostState, HostTensor, TensorRef, encode_tree
from unbroken.errors import DamagedError
from unbroken.link.arena import ALIGNMENT, PAGE, Slot, SlotOwner, layout, read_sequence, read_slot

OWNER = SlotOwner("s3://bucket/run", 7, "claim")
TENSORS = st.dictionaries(st.text(min_size=1, max_size=8), st.binary(max_size=300), max_size=6)


@pytest.fixture
def slot() -> Iterator[Slot]:
    made = Slot.create(0)
    yield made
    made.close()


def write(slot: Slot, tensors: dict[str, bytes], *, step: int = 1, seal: bool = True) -> HostState:
    starts, size = layout(len(data) for data in tensors.values())
    room = slot.reserve(size)
    held = []
    for (name, data), start in zip(tensors.items(), starts, strict=True):
        room[start : start + len(data)] = data
        held.append(HostTensor(name, "uint8", (len(data),), room[start : start + len(data)]))
    tree = encode_tree({name: TensorRef(name) for name in tensors})
    state = HostState(step, tree, held, {"loss": [(1, 0.5)]}, began_at=2.5, stall=0.25, partial=True)
    if seal:
        slot.seal(OWNER, state, starts)
    return state


def held(slot: Slot) -> dict[str, bytes] | None:
    found = read_slot(slot.descriptor)
    return {tensor.name: bytes(tensor.data) for tensor in found[1].tensors} if found is not None else None


@given(lengths=st.lists(st.integers(0, 1 << 40)))
def test_no_two_tensors_meet_and_each_begins_aligned(lengths):
    starts, size = layout(lengths)
    assert all(start % ALIGNMENT == 0 for start in starts)
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    assert all(end <= start for end, start in zip(ends, [*starts, size][1:], strict=True))
    assert all(start % PAGE == 0 for start, length in zip(starts, lengths, strict=True) if length >= PAGE)
    assert size <= sum(lengths) + sum(PAGE if length >= PAGE else ALIGNMENT for length in lengths)


@given(tensors=TENSORS, step=st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_what_was_sealed_is_read_back(tensors, step):
    with contextlib.closing(Slot.create(3)) as slot:
        written = write(slot, tensors, step=step)
        owner, state = read_slot(slot.descriptor)
        assert owner == OWNER
        assert (state.step, state.tree, state.metrics) == (step, written.tree, written.metrics)
        assert (state.began_at, state.stall, state.partial) == (2.5, 0.25, True)
        assert [(each.name, each.dtype, each.shape) for each in state.tensors] == [
            (each.name, each.dtype, each.shape) for each in written.tensors
        ]
        assert held(slot) == tensors


class SlotMachine(RuleBasedStateMachine):
    """Any order of writing, sealing, unsealing, growing, touching and taking over."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = Slot.create(0)
        self.sealed: dict[str, bytes] | None = None
        self.size = 0
        self.writing = False

    @rule(tensors=TENSORS, seal=st.booleans())
    def write(self, tensors: dict[str, bytes], seal: bool) -> None:
        write(self.slot, tensors, seal=seal)
        self.sealed = dict(tensors) if seal else None

    @rule(large=st.integers(0, 3 << 20))
    def make_room(self, large: int) -> None:
        self.slot.make_room(large)
        assert self.slot.fits(large)

    @precondition(lambda self: self.slot.size)
    @rule(start=st.integers(0, 4 << 20), length=st.integers(0, 2 << 20))
    def touch(self, start: int, length: int) -> None:
        self.slot.touch(start, length)

    @rule()
    def unseal(self) -> None:
        self.slot.unseal()
        self.sealed = None

    @rule()
    def another_process_takes_it_over(self) -> None:
        other = Slot(1, os.dup(self.slot.descriptor))
        self.slot.close()
        self.slot = other

    @invariant()
    def reads_what_was_sealed_last(self) -> None:
        assert held(self.slot) == self.sealed
        sequence = read_sequence(self.slot.descriptor)
        assert (sequence > 0 and sequence % 2 == 0) == (self.sealed is not None)

    @invariant()
    def never_shrinks(self) -> None:
        size = os.fstat(self.slot.descriptor).st_size
        assert size == self.slot.size >= self.size
        self.size = size

    def teardown(self) -> None:
        self.slot.close()


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)


@given(at=st.integers(0, 24 + 16 - 1), flip=st.integers(1, 255))
@settings(max_examples=80, deadline=None)
def test_a_damaged_header_is_never_believed(at, flip):
    with contextlib.closing(Slot.create(0)) as slot:
        write(slot, {"a": b"first", "b": bytes(200)})
        offset = at if at < 8 else at + 8  # the sequence itself says only whether it is sealed
        original = os.pread(slot.descriptor, 1, offset)[0]
        os.pwrite(slot.descriptor, bytes([original ^ flip]), offset)
        if at < 8:
            assert read_slot(slot.descriptor) is None
        else:
            with pytest.raises(DamagedError, match="staging slot"):
                read_slot(slot.descriptor)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_damaged_description_is_never_believed(data):
    with contextlib.closing(Slot.create(0)) as slot:
        write(slot, {"a": b"first", "b": bytes(200)})
        start, length = (int.from_bytes(os.pread(slot.descriptor, 8, at), "little") for at in (16, 24))
        at = start + data.draw(st.integers(0, length - 1))
        original = os.pread(slot.descriptor, 1, at)[0]
        os.pwrite(slot.descriptor, bytes([original ^ data.draw(st.integers(1, 255))]), at)
        with pytest.raises(DamagedError):
            read_slot(slot.descriptor)


def test_a_tensor_outside_of_its_slot_is_refused(slot):
    starts = [1 << 40]
    state = write(slot, {"a": b"12345678"}, seal=False)
    # A writer with a fault of its own: what it describes is well formed.
    slot._grow = lambda size: None  # type: ignore[method-assign]
    with pytest.raises((ValueError, IndexError, DamagedError)):
        slot.seal(OWNER, state, starts)
        read_slot(slot.descriptor)
    assert held(slot) is None


def test_an_empty_slot_and_a_short_file_hold_nothing(slot):
    assert read_slot(slot.descriptor) is None
    assert read_sequence(slot.descriptor) == 0
    os.ftruncate(slot.descriptor, 100)
    assert read_slot(slot.descriptor) is None


def test_views_outlive_growth_and_closing_and_see_the_same_memory(slot):
    room = slot.reserve(100)
    room[:5] = b"early"
    later = slot.reserve(8 << 20)
    assert bytes(later[:5]) == b"early"
    later[5:9] = b"more"
    assert bytes(room[:9]) == b"earlymore"
    slot.close()
    assert bytes(room[:9]) == b"earlymore"


def test_a_reader_s_views_outlive_the_descriptor(slot):
    write(slot, {"a": b"kept"})
    copy = os.dup(slot.descriptor)
    _, state = read_slot(copy)
    os.close(copy)
    slot.close()
    assert bytes(state.tensors[0].data) == b"kept"


def test_another_process_reads_what_a_killed_one_sealed(slot):
    code = (
        "import os, sys, signal\n"
        "from unbroken.link.arena import Slot, SlotOwner, layout\n"
        "from unbroken.checkpoint import HostState, HostTensor\n"
        "slot = Slot(0, int(sys.argv[1])); room = slot.reserve(64); room[:4] = b'live'\n"
        "slot.seal(SlotOwner('u', 1, 'c'), HostState(5, None, [HostTensor('a', 'uint8', (4,), room[:4])]), [0])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(slot.descriptor)]
    done = subprocess.run(command, pass_fds=[slot.descriptor], timeout=60, check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    _, state = read_slot(slot.descriptor)
    assert (state.step, bytes(state.tensors[0].data)) == (5, b"live")


def test_the_file_cannot_shrink_under_a_reader(slot):
    write(slot, {"a": b"kept"})
    with pytest.raises(PermissionError):
        os.ftruncate(slot.descriptor, 0)


def test_touching_takes_memory_and_changes_nothing(slot):
    write(slot, {"a": b"x" * 100})
    slot.make_room(8 << 20)
    before = slot.held
    slot.touch(0, 8 << 20)
    assert slot.held >= 8 << 20 > before
    assert held(slot) == {"a": b"x" * 100}


def test_an_older_kernel_s_memory_is_touched_by_reading(slot, monkeypatch):
    class Libc:
        @staticmethod
        def madvise(*_: object) -> int:
            return -1

    monkeypatch.setattr("unbroken.link.arena._LIBC", Libc)
    monkeypatch.setattr("ctypes.get_errno", lambda: 22)
    write(slot, {"a": b"x" * 100})
    slot.make_room(8 << 20)
    slot.touch(0, 8 << 20)
    assert slot.held >= 8 << 20
    assert held(slot) == {"a": b"x" * 100}


def test_a_host_without_memory_says_so(slot, monkeypatch):
    class Libc:
        @staticmethod
        def madvise(*_: object) -> int:
            return -1

    monkeypatch.setattr("unbroken.link.arena._LIBC", Libc)
    monkeypatch.setattr("ctypes.get_errno", lambda: 12)
    slot.make_room(100)
    with pytest.raises(MemoryError, match="no room for 100 bytes"):
        slot.touch(4096, 100)
    with pytest.raises(MemoryError, match="no room for a staging slot"):
        slot.reserve(1 << 62)


def test_growth_that_fails_leaves_what_was_sealed(slot):
    write(slot, {"a": b"kept"})
    with pytest.raises(MemoryError):
        slot.reserve(1 << 62)
    assert held(slot) == {"a": b"kept"}


def test_a_description_longer_than_its_room_lets_the_slot_grow(slot):
    tensors = {f"{'n' * 1000}{i}": b"" for i in range(3000)}
    write(slot, tensors)
    assert held(slot) == tensors


def test_closing_twice_and_using_a_closed_slot_are_told_apart(slot):
    slot.reserve(10)
    slot.close()
    slot.close()
    assert (slot.size, slot.held) == (0, 0)
    with pytest.raises(ValueError, match="closed"):
        slot.touch(0, 10)
