"""Arena slots: memory of one staged state, shared by the trainer that fills it and the agent that uploads it.

A slot is a memfd. Whoever holds its descriptor keeps it alive, so that what was staged outlives the process that staged
it. Layout, little-endian:

========== =======================================================================================
0          header: magic, version, sequence, start and length of the description, its xxh3-128
4096       tensors, each at a multiple of 64 bytes, or of 4096 where it is as long
start      description, MessagePack: whose state this is, its tree, where each tensor (or part) lies
========== =======================================================================================

The sequence is even, and not 0, where the slot is *sealed*: complete, and not being written. One process writes; the
file never shrinks, so that a reader cannot fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import xxhash

from unbroken.checkpoint import HostState, HostTensor, Metrics
from unbroken.errors import DamagedError

ALIGNMENT = 64
"""Of each tensor's first byte."""
PAGE = 4096
"""The same of tensors that fill one or more: files take such memory as it lies, without the page cache."""

_MAGIC = b"unbrknA1"
_HEADER = struct.Struct("<8sQQQ16s")
_SEQUENCE = struct.Struct("<Q")
_SEQUENCE_AT = 8
_DATA = 4096
_DESCRIPTION_ROOM = 1 << 20
"""Room for the description that is made with the tensors'; a longer one lets the slot grow."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of Linux 5.14, which Python 3.11 has no name for."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class SlotTensor(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor, or the box of it that this rank has, lies in the slot."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int
    offset: tuple[int, ...] = ()
    whole: tuple[int, ...] | None = None


class SlotOwner(msgspec.Struct, frozen=True):
    """Whose state a slot holds."""

    uri: str
    attempt: int
    claim: str


class _Description(msgspec.Struct, frozen=True):
    owner: SlotOwner
    step: int
    tree: Any
    tensors: list[SlotTensor]
    metrics: Metrics
    began_at: float
    stall: float
    partial: bool
    rank: int = 0
    world_size: int = 1
    local: Any = {}
    shared: dict[str, str] = {}


_DECODER = msgspec.msgpack.Decoder(_Description)


class Slot:
    """A slot to write to. One thread at a time.

    Args:
        number: which of its arena's it is.
        descriptor: of a slot's memfd, which this object owns from now on.
    """

    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self._descriptor = descriptor
        self._mapping: mmap.mmap | None = None
        self._sequence = 0
        size = os.fstat(descriptor).st_size
        if size >= _DATA:
            self._map(size)
            self._sequence = _SEQUENCE.unpack_from(self._mapped, _SEQUENCE_AT)[0]

    @classmethod
    def create(cls, number: int) -> Slot:
        """An empty slot.

        Raises:
            OSError: no more descriptors, or the system has no memfd.
        """
        descriptor = os.memfd_create(f"unbroken-slot-{number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return cls(number, descriptor)

    @property
    def descriptor(self) -> int:
        """The memfd, to be passed on."""
        return self._descriptor

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._mapping) if self._mapping is not None else 0

    @property
    def held(self) -> int:
        """Bytes of real memory behind the file, which grow as it is touched; 0 for a closed slot."""
        return os.fstat(self._descriptor).st_blocks * 512 if self._descriptor >= 0 else 0

    def fits(self, length: int) -> bool:
        """Whether there is room for ``length`` bytes of tensors, so that the memory will not move."""
        return _DATA + length + _DESCRIPTION_ROOM <= self.size

    def address(self) -> int:
        """Where the file begins in this process's memory; good until the slot grows or is closed."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._mapped))

    def make_room(self, length: int) -> None:
        """Make room for ``length`` bytes of tensors. What the slot holds, and that it is sealed, stays.

        Raises:
            MemoryError: the host has no room.
        """
        self._grow(_DATA + length + _DESCRIPTION_ROOM)

    def reserve(self, length: int) -> memoryview:
        """Make room for ``length`` bytes of tensors, and begin to write: the slot is not sealed from here on.

        Views of an earlier call stay valid, and see the same memory.

        Returns:
            that room, writable.

        Raises:
            MemoryError: the host has no room.
        """
        self.make_room(length)
        if self._sequence % 2 == 0:
            self._write_sequence(self._sequence + 1)
        return memoryview(self._mapped)[_DATA : _DATA + length]

    def touch(self, start: int, length: int) -> None:
        """Have the system give real memory to a range of the room, so that the first copy is as fast as later ones.

        Another thread may write to the slot meanwhile: what it holds is not changed. What lies beyond the room is left
        out.

        Raises:
            MemoryError: the host has no room.
        """
        mapping = self._mapped  # another thread may let the slot grow
        start = (_DATA + start) // mmap.PAGESIZE * mmap.PAGESIZE
        end = min(start + length, len(mapping))
        if end <= start:
            return
        anchor = ctypes.c_char.from_buffer(mapping, start)  # the mapping cannot be closed while this lives
        # Not mapping.madvise(): that keeps every other thread of Python waiting until all of the pages are there.
        address = ctypes.c_void_p(ctypes.addressof(anchor))
        if _LIBC.madvise(address, ctypes.c_size_t(end - start), _POPULATE_WRITE) == 0:
            return
        number = ctypes.get_errno()
        if number in (errno.ENOMEM, errno.EFAULT):
            raise MemoryError(f"the host has no room for {end - start} bytes of a slot ({os.strerror(number)})")
        # An older kernel. Reading makes pages of a shared mapping, too, and cannot undo what somebody writes meanwhile.
        with memoryview(mapping) as view:
            bytes(view[start : end : mmap.PAGESIZE])

    def seal(self, owner: SlotOwner, state: HostState, starts: Sequence[int]) -> None:
        """Say what the slot holds, and that it is complete.

        Args:
            owner: whose state it is.
            state: with the tensors that were written.
            starts: where each of them begins, in bytes from the beginning of the room.

        Raises:
            MemoryError: the host has no room for the description.
        """
        tensors = [
            SlotTensor(
                tensor.name, tensor.dtype, tensor.shape, _DATA + start, len(tensor.data), tensor.offset, tensor.whole
            )
            for tensor, start in zip(state.tensors, starts, strict=True)
        ]
        data = msgspec.msgpack.encode(
            _Description(
                owner,
                state.step,
                state.tree,
                tensors,
                state.metrics,
                state.began_at,
                state.stall,
                state.partial,
                state.rank,
                state.world_size,
                state.local,
                state.shared,
            )
        )
        end = max((tensor.start + tensor.length for tensor in tensors), default=_DATA)
        self._grow(end + len(data))
        self._mapped[end : end + len(data)] = data
        digest = xxhash.xxh3_128_digest(data)
        _HEADER.pack_into(self._mapped, 0, _MAGIC, self._sequence | 1, end, len(data), digest)
        self._write_sequence((self._sequence | 1) + 1)

    def unseal(self) -> None:
        """Say that what the slot holds is not to be used."""
        if self._mapping is not None and self._sequence % 2 == 0:
            self._write_sequence(self._sequence + 1)

    def discard(self) -> None:
        """Close the slot, and give its memory back to the system whoever else holds the descriptor.

        What it held is gone, for views and readers, too: they find zeros. Nobody may need it any more.
        """
        if self._mapping is not None:
            self.unseal()
            with contextlib.suppress(OSError):
                self._mapping.madvise(mmap.MADV_REMOVE)
        self.close()

    def close(self) -> None:
        """Give the descriptor back. Views stay valid until they are dropped."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        _unmap(self._mapping)
        self._mapping = None

    @property
    def _mapped(self) -> mmap.mmap:
        if self._mapping is None:
            raise ValueError("the slot is empty or closed")
        return self._mapping

    def _grow(self, size: int) -> None:
        if size <= self.size:
            return
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            if os.fstat(self._descriptor).st_size < size:  # else an earlier growth got as far as this
                os.ftruncate(self._descriptor, size)
            self._map(size)
        except (OSError, ValueError, OverflowError) as error:
            raise MemoryError(f"the host has no room for a staging slot of {size} bytes ({error})") from error

    def _map(self, size: int) -> None:
        # A second mapping of the same pages: views on the first one, and what was touched, stay as they are.
        before = self._mapping
        self._mapping = mmap.mmap(self._descriptor, size)
        _unmap(before)

    def _write_sequence(self, sequence: int) -> None:
        self._sequence = sequence
        _SEQUENCE.pack_into(self._mapped, _SEQUENCE_AT, sequence)


def layout(lengths: Iterable[int]) -> tuple[list[int], int]:
    """Where each of some tensors begins in a slot's room, and how long the room must be, in bytes."""
    starts, at = [], 0
    for length in lengths:
        alignment = PAGE if length >= PAGE else ALIGNMENT
        at = -(-at // alignment) * alignment
        starts.append(at)
        at += length
    return starts, -(-at // ALIGNMENT) * ALIGNMENT


def read_slot(descriptor: int, *, writable: bool = False) -> tuple[SlotOwner, HostState] | None:
    """What a sealed slot holds, without a copy; None for one that is not sealed.

    The views in it keep the memory alive, whatever becomes of the descriptor. They are good for as long as the writer
    has no leave to write again.

    Args:
        writable: whether the views shall be; for the slot's owner.

    Raises:
        DamagedError: it says that it is sealed, and makes no sense.
    """
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return None
    magic, sequence, start, length, digest = _HEADER.unpack(header)
    if magic != _MAGIC or sequence == 0 or sequence % 2:
        return None
    if start + length > os.fstat(descriptor).st_size:
        raise DamagedError("a staging slot ends before its description", kind="slot")
    mapping = mmap.mmap(descriptor, start + length, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
    data = bytes(mapping[start:])
    if xxhash.xxh3_128_digest(data) != digest:
        raise DamagedError("the description in a staging slot disagrees with its digest", kind="slot")
    try:
        held = _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise DamagedError(f"the description in a staging slot makes no sense ({error})", kind="slot") from error
    view = memoryview(mapping)
    for tensor in held.tensors:
        if not _DATA <= tensor.start <= tensor.start + tensor.length <= start:
            raise DamagedError(f"{tensor.name} lies outside of its staging slot", kind="slot")
    tensors = [
        HostTensor(
            tensor.name,
            tensor.dtype,
            tensor.shape,
            view[tensor.start : tensor.start + tensor.length],
            tensor.offset,
            tensor.whole,
        )
        for tensor in held.tensors
    ]
    return held.owner, HostState(
        held.step, held.tree, tensors, held.metrics, began_at=held.began_at, stall=held.stall, partial=held.partial,
        rank=held.rank, world_size=held.world_size, local=held.local, shared=held.shared,
    )  # fmt: skip


def read_sequence(descriptor: int) -> int:
    """The sequence of a slot: another one than before means that what was read since may be torn; 0: empty."""
    data = os.pread(descriptor, _SEQUENCE.size, _SEQUENCE_AT)
    return int(_SEQUENCE.unpack(data)[0]) if len(data) == _SEQUENCE.size else 0


def _unmap(mapping: mmap.mmap | None) -> None:
    """Close a mapping at once where nobody holds a view of it; else the last view does."""
    if mapping is not None:
        with contextlib.suppress(BufferError):
            mapping.close()
