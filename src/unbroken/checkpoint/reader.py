"""Reading tensors back, whole or boxes of them: parallel ranged GETs, every byte checked before anyone sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from unbroken.checkpoint.boxes import Box
from unbroken.checkpoint.chunks import READERS, Chunk, batch_range, batches, named
from unbroken.checkpoint.copying import copy_checked
from unbroken.checkpoint.digest import digest
from unbroken.checkpoint.from_memory import take_from_memory
from unbroken.checkpoint.manifest import Manifest, TensorRecord
from unbroken.checkpoint.parallel import in_threads
from unbroken.checkpoint.pieces import Piece, WantedChunk, wanted_chunks
from unbroken.errors import DamagedError, NotFoundError
from unbroken.store import ReadsInto, Store


def read_pieces(
    store: Store,
    manifest: Manifest,
    pieces: Sequence[Piece],
    *,
    staged: Mapping[tuple[str, tuple[int, ...]], memoryview] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Read boxes of tensors, verified, whatever the slices in which the checkpoint has them.

    Only chunks that hold a byte of a piece are read, each once. One that is wanted whole and in order is read straight
    to its place; at most ``READERS`` chunks are held in memory beside the pieces.

    Args:
        store: of the run.
        manifest: of the checkpoint.
        pieces: what is wanted, and the memory for it; several may be of one tensor. Bytes land there before everything
            is verified: after an error the memory is not to be used.
        staged: the bytes of slices, as the manifest has them, by the tensor's name and the slice's offset, as they may
            still lie in this machine's memory. What agrees with the manifest is taken from there; of the rest, what
            differs is said once in the log, and the store is read.
        on_bytes: told, in any thread, of each number of bytes that arrived and were verified: of whole chunks, which
            may be more than the pieces have.

    Raises:
        DamagedError: a pack is missing, ends early, or disagrees with its digests; names tensor and pack. Or slices of
            the manifest do not make up a tensor.
        NotFoundError: the checkpoint holds no tensor of a piece's name.
        ValueError: a piece lies outside its tensor, or its memory is of another size or may not be written.
    """
    chunks = wanted_chunks(manifest, pieces)
    tell = on_bytes or (lambda _: None)
    if staged is not None:
        chunks = take_from_memory(chunks, staged, tell)

    def read(batch: list[WantedChunk]) -> None:
        _read_batch(store, batch)
        tell(sum(chunk.length for chunk in batch))

    if chunks:
        in_threads(read, batches(chunks), threads=READERS, name="unbroken-read")


def read_tensors(
    store: Store,
    manifest: Manifest,
    names: Iterable[str] | None = None,
    *,
    allocate: Callable[[TensorRecord], memoryview] | None = None,
    staged: Mapping[str, memoryview] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> dict[str, memoryview]:
    """Read tensors of a checkpoint, verified; those that several ranks wrote are put together.

    Beside the tensors themselves it holds at most ``READERS`` chunks in memory, however much there is to read.

    Args:
        store: of the run.
        manifest: of the checkpoint.
        names: which tensors; all by default.
        allocate: gives the writable memory of a tensor, 1-D, of as many bytes as the tensor has; fresh memory by
            default. Bytes land there before all of the checkpoint is verified: after an error it is not to be used.
        staged: the bytes of tensors by name, as they may still lie in this machine's memory. What agrees with the
            manifest is taken from there; for the rest, said once in the log, the store is read. Tensors of several
            slices are read from the store.
        on_bytes: told, in any thread, of each number of bytes that arrived and were verified.

    Returns:
        the bytes of each tensor in row-major order, by name.

    Raises:
        DamagedError: a pack is missing, ends early, or disagrees with its digests; names tensor and pack.
        NotFoundError: the checkpoint holds no tensor of that name.
        ValueError: ``allocate`` gave memory of another size.
    """
    wanted = manifest.tensors if names is None else _records(manifest, names)
    memory = {record.name: _memory(record, allocate) for record in wanted}
    pieces = [Piece(record.name, Box.whole(record.shape), memory[record.name]) for record in wanted]
    slices = None if staged is None else _staged_slices(wanted, staged)
    read_pieces(store, manifest, pieces, staged=slices, on_bytes=on_bytes)
    return memory


def _records(manifest: Manifest, names: Iterable[str]) -> list[TensorRecord]:
    by_name = {record.name: record for record in manifest.tensors}
    return [by_name.get(name) or manifest.tensor(name) for name in dict.fromkeys(names)]


def _memory(record: TensorRecord, allocate: Callable[[TensorRecord], memoryview] | None) -> memoryview:
    memory = memoryview(bytearray(record.size)) if allocate is None else allocate(record)
    if len(memory) != record.size:
        raise ValueError(f"{record.name} has {record.size} bytes, and was given memory for {len(memory)}")
    return memory


def _staged_slices(
    records: Iterable[TensorRecord], staged: Mapping[str, memoryview]
) -> dict[tuple[str, tuple[int, ...]], memoryview]:
    """Whole tensors as slices. One that is missing there is one that differs: all were expected."""
    nothing = memoryview(b"")
    return {
        (record.name, tuple(record.slices[0].offset)): staged.get(record.name, nothing)
        for record in records
        if len(record.slices) == 1
    }


def _read_batch(store: Store, batch: Sequence[WantedChunk]) -> None:
    """Read what the batch covers to its places. The bytes that are checked are those that are handed out."""
    key, start, length = batch_range(batch)
    if isinstance(store, ReadsInto):
        rooms = [chunk.room() for chunk in batch]
        with _located(store, batch):
            store.read_into(key, start, rooms)
        for chunk, room in zip(batch, rooms, strict=True):
            _demand(chunk, digest(room), store)
            chunk.spread(room)
        return
    with _located(store, batch):
        data = store.get_range(key, start, length)
    for chunk in batch:
        source = data[chunk.start - start : chunk.start - start + chunk.length]
        _demand(chunk, digest(source) if chunk.straight is None else copy_checked(chunk.straight, source), store)
        chunk.spread(source)


def _demand(chunk: Chunk, found: str, store: Store) -> None:
    if found != chunk.digest:
        raise DamagedError(
            f"bytes of {chunk.holds} in {chunk.key} of {store.uri} disagree with their digest", kind="digest"
        )


@contextmanager
def _located(store: Store, batch: Sequence[Chunk]) -> Iterator[None]:
    """Say of a pack that is missing or ends early what it holds."""
    key = batch[0].key
    try:
        yield
    except NotFoundError as error:
        if error.kind != "object":
            raise
        raise DamagedError(f"{key}, which holds {named(batch)}, is missing from {store.uri}", kind="missing") from error
    except DamagedError as error:
        raise DamagedError(f"{error.message} (it holds {named(batch)})", kind=error.kind) from error
