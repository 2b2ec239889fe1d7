"""Reading tensors back: parallel ranged GETs, every byte checked before anyone sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from unbroken.checkpoint.digest import CHUNK, digest
from unbroken.checkpoint.manifest import Manifest, Slice, TensorRecord
from unbroken.errors import DamagedError, NotFoundError
from unbroken.store import Store

_READERS = 8


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
    """
    wanted = manifest.tensors if names is None else [manifest.tensor(name) for name in names]
    make = allocate or (lambda record: memoryview(bytearray(record.size)))
    memory: dict[str, memoryview] = {}
    with ThreadPoolExecutor(_READERS, thread_name_prefix="unbroken-read") as pool:
        futures: list[Future[None]] = []
        try:
            for record in wanted:
                memory[record.name] = make(record)
                for place, piece, number in _chunks(record):
                    target = memory[record.name][place : place + _chunk_length(piece, number)]
                    futures.append(pool.submit(_read_chunk, store, manifest, record, piece, number, target))
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            for future in futures:
                future.cancel()
    return memory


def _chunks(record: TensorRecord) -> Iterable[tuple[int, Slice, int]]:
    """(place in the tensor's bytes, slice, number of the chunk) of every chunk.

    Version 1 writers of one rank store a tensor whole; its one slice begins at byte 0.
    """
    if len(record.slices) != 1 or record.slices[0].shape != record.shape:
        raise DamagedError(f"the tensor {record.name} is not stored whole", kind="slices")
    piece = record.slices[0]
    if piece.length != record.size or len(piece.digests) != -(-piece.length // CHUNK):
        raise DamagedError(f"the sizes of the tensor {record.name} contradict each other", kind="slices")
    return ((number * CHUNK, piece, number) for number in range(len(piece.digests)))


def _chunk_length(piece: Slice, number: int) -> int:
    return min(CHUNK, piece.length - number * CHUNK)


def _read_chunk(
    store: Store, manifest: Manifest, record: TensorRecord, piece: Slice, number: int, target: memoryview
) -> None:
    key = manifest.packs[piece.pack].key
    try:
        data = store.get_range(key, piece.start + number * CHUNK, len(target))
    except NotFoundError as error:
        raise DamagedError(f"{key}, which holds {record.name}, is missing from {store.uri}", kind="missing") from error
    except DamagedError as error:
        raise DamagedError(f"{error.message} (it holds {record.name})", kind=error.kind) from error
    # Check the very bytes that are handed out: after the copy, not before it.
    target[:] = data
    if digest(target) != piece.digests[number]:
        raise DamagedError(f"bytes of {record.name} in {key} of {store.uri} disagree with their digest", kind="digest")
