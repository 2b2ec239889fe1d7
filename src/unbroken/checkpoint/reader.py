"""Reading tensors back: parallel ranged GETs, every byte checked before anyone sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from unbroken.checkpoint.chunks import READERS, Chunk, batch_range, batches, named, tensor_chunks
from unbroken.checkpoint.copying import copy_checked
from unbroken.checkpoint.digest import digest
from unbroken.checkpoint.from_memory import take_from_memory
from unbroken.checkpoint.manifest import Manifest, TensorRecord
from unbroken.checkpoint.parallel import in_threads
from unbroken.errors import DamagedError, NotFoundError
from unbroken.store import ReadsInto, Store


def read_tensors(
    store: Store,
    manifest: Manifest,
    names: Iterable[str] | None = None,
    *,
    allocate: Callable[[TensorRecord], memoryview] | None = None,
    staged: Mapping[str, memoryview] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> dict[str, memoryview]:
    """Read tensors of a checkpoint, verified.

    Beside the tensors themselves it holds at most ``READERS`` chunks in memory, however much there is to read.

    Args:
        store: of the run.
        manifest: of the checkpoint.
        names: which tensors; all by default.
        allocate: gives the writable memory of a tensor, 1-D, of as many bytes as the tensor has; fresh memory by
            default. Bytes land there before all of the checkpoint is verified: after an error it is not to be used.
        staged: the bytes of tensors by name, as they may still lie in this machine's memory. What agrees with the
            manifest is taken from there; for the rest, said once in the log, the store is read.
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
    chunks = [chunk for record in wanted for chunk in tensor_chunks(manifest, record)]
    tell = on_bytes or (lambda _: None)
    if staged is not None:
        chunks = take_from_memory(chunks, staged, memory, tell)

    def read(batch: list[Chunk]) -> None:
        _read_batch(store, batch, memory)
        tell(sum(chunk.length for chunk in batch))

    if chunks:
        in_threads(read, batches(chunks), threads=READERS, name="unbroken-read")
    return memory


def _records(manifest: Manifest, names: Iterable[str]) -> list[TensorRecord]:
    by_name = {record.name: record for record in manifest.tensors}
    return [by_name.get(name) or manifest.tensor(name) for name in dict.fromkeys(names)]


def _memory(record: TensorRecord, allocate: Callable[[TensorRecord], memoryview] | None) -> memoryview:
    memory = memoryview(bytearray(record.size)) if allocate is None else allocate(record)
    if len(memory) != record.size:
        raise ValueError(f"{record.name} has {record.size} bytes, and was given memory for {len(memory)}")
    return memory


def _read_batch(store: Store, batch: list[Chunk], memory: Mapping[str, memoryview]) -> None:
    """Read what the batch covers to its places. The bytes that are checked are those that are handed out."""
    key, start, length = batch_range(batch)
    targets = [memory[chunk.holds][chunk.place : chunk.place + chunk.length] for chunk in batch]
    if isinstance(store, ReadsInto):
        with _located(store, batch):
            store.read_into(key, start, targets)
        found = [digest(target) for target in targets]
    else:
        with _located(store, batch):
            data = store.get_range(key, start, length)
        sources = (data[chunk.start - start : chunk.start - start + chunk.length] for chunk in batch)
        found = [copy_checked(target, source) for target, source in zip(targets, sources, strict=True)]
    for chunk, has in zip(batch, found, strict=True):
        if has != chunk.digest:
            raise DamagedError(
                f"bytes of {chunk.holds} in {key} of {store.uri} disagree with their digest", kind="digest"
            )


@contextmanager
def _located(store: Store, batch: list[Chunk]) -> Iterator[None]:
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
