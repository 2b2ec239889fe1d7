"""Reading tensors back: parallel ranged GETs, every byte checked before anyone sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from unbroken.checkpoint.chunks import READERS, Chunk, batch_range, batches, named, tensor_chunks
from unbroken.checkpoint.digest import digest
from unbroken.checkpoint.manifest import Manifest, TensorRecord
from unbroken.errors import DamagedError, NotFoundError
from unbroken.store import Store


def read_tensors(
    store: Store,
    manifest: Manifest,
    names: Iterable[str] | None = None,
    *,
    allocate: Callable[[TensorRecord], memoryview] | None = None,
) -> dict[str, memoryview]:
    """Read tensors of a checkpoint, verified.

    Args:
        store: of the run.
        manifest: of the checkpoint.
        names: which tensors; all by default.
        allocate: gives the writable memory of a tensor, 1-D, of as many bytes as the tensor has; fresh memory by
            default. Bytes land there before all of the checkpoint is verified: after an error it is not to be used.

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
    with ThreadPoolExecutor(READERS, thread_name_prefix="unbroken-read") as pool:
        futures: list[Future[None]] = []
        try:
            futures.extend(pool.submit(_read_batch, store, batch, memory) for batch in batches(chunks))
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    future.result()
        finally:
            for future in futures:
                future.cancel()
    return memory


def _records(manifest: Manifest, names: Iterable[str]) -> list[TensorRecord]:
    by_name = {record.name: record for record in manifest.tensors}
    return [by_name.get(name) or manifest.tensor(name) for name in dict.fromkeys(names)]


def _memory(record: TensorRecord, allocate: Callable[[TensorRecord], memoryview] | None) -> memoryview:
    memory = memoryview(bytearray(record.size)) if allocate is None else allocate(record)
    if len(memory) != record.size:
        raise ValueError(f"{record.name} has {record.size} bytes, and was given memory for {len(memory)}")
    return memory


def _read_batch(store: Store, batch: list[Chunk], memory: dict[str, memoryview]) -> None:
    key, start, length = batch_range(batch)
    try:
        data = store.get_range(key, start, length)
    except NotFoundError as error:
        if error.kind != "object":
            raise
        raise DamagedError(f"{key}, which holds {named(batch)}, is missing from {store.uri}", kind="missing") from error
    except DamagedError as error:
        raise DamagedError(f"{error.message} (it holds {named(batch)})", kind=error.kind) from error
    for chunk in batch:
        target = memory[chunk.holds][chunk.place : chunk.place + chunk.length]
        # Check the very bytes that are handed out: after the copy, not before it.
        target[:] = data[chunk.start - start : chunk.start - start + chunk.length]
        if digest(target) != chunk.digest:
            raise DamagedError(
                f"bytes of {chunk.holds} in {key} of {store.uri} disagree with their digest", kind="digest"
            )
