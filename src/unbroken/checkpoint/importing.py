"""Making a state from elsewhere the first checkpoint of a new run."""

from __future__ import annotations

import logging
import math
import mmap
from collections import OrderedDict
from pathlib import Path

from unbroken.checkpoint.dtypes import from_safetensors, item_size
from unbroken.checkpoint.packs import HostTensor
from unbroken.checkpoint.safetensors import Header, HeaderEntry, decode_header
from unbroken.checkpoint.staged import HostState, check_state
from unbroken.checkpoint.tree import TensorRef, encode_tree
from unbroken.checkpoint.writer import CheckpointWriter
from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import ConfigError, DamagedError, NotFoundError, UnbrokenError
from unbroken.journal import Journal, Origin, RunState
from unbroken.journal.events import AttemptEnded, CheckpointCommitted
from unbroken.store import Store

_log = logging.getLogger("unbroken")

PURPOSE = "import"
"""The purpose of the attempt that imports."""
IMPORTED = "imported"
"""The cause with which it ends."""


def demand_name(name: str) -> None:
    """Refuse a name that no program can pass in ``state={...}``.

    Raises:
        ConfigError: names it.
    """
    if not name or "/" in name or name.startswith("$") or name == "rng":
        raise ConfigError(
            f"{name!r} cannot name a part of the state", kind="state",
            hint="Use the word that the program has in state={...}, such as model",
        )  # fmt: skip


def open_source(path: Path) -> memoryview:
    """The bytes of a file, mapped: they are read when they are needed.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it cannot be read, or is empty.
    """
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}", kind="file") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error})", kind="file") from error


def is_safetensors(data: memoryview) -> bool:
    """Whether a file looks like safetensors: a length, and then JSON."""
    return len(data) > 8 and data[8] == ord("{")


def safetensors_state(data: memoryview, source: str, name: str) -> HostState:
    """The state of step 0 whose object ``name`` holds the tensors of a safetensors file, aliases included.

    Raises:
        DamagedError: the file is not sound.
        ConfigError: it holds no tensors, or a type that checkpoints do not hold; names the tensor.
    """
    demand_name(name)
    header = decode_header(data, source)
    if not header.entries:
        raise ConfigError(f"{source} holds no tensors", kind="file")
    tensors = [
        _tensor(f"{name}/{entry.name}", entry, data[start : start + entry.length], source)
        for entry, start in zip(header.entries, header.starts, strict=True)
    ]
    tree = encode_tree({name: _tree(header, name)})
    state = HostState(0, tree, tensors, partial=True)
    check_state(state)
    return state


def _tensor(name: str, entry: HeaderEntry, data: memoryview, source: str) -> HostTensor:
    dtype = from_safetensors(entry.dtype)
    if not dtype:
        raise ConfigError(
            f"{entry.name} in {source} has the element type {entry.dtype}, which format 1 does not hold", kind="dtype"
        )
    if math.prod(entry.shape) * item_size(dtype) != entry.length:
        raise DamagedError(
            f"{entry.name} in {source} is a {entry.dtype} of shape {entry.shape} with {entry.length} bytes",
            kind="safetensors",
        )
    return HostTensor(name, dtype, tuple(entry.shape), data)


def _tree(header: Header, name: str) -> OrderedDict[str, TensorRef]:
    held = {entry.name for entry in header.entries}
    refs = OrderedDict((entry.name, TensorRef(f"{name}/{entry.name}")) for entry in header.entries)
    for alias, kept in header.metadata.items():
        if kept in held and alias not in held:  # tied weights, as safetensors.torch.save_model and our export put them
            refs[alias] = TensorRef(f"{name}/{kept}")
    return refs


def import_state(store: Store, state: HostState, origin: Origin, *, clock: Clock = SYSTEM_CLOCK) -> CheckpointCommitted:
    """Commit ``state`` as the first checkpoint of a run, under an attempt that ends at once.

    Raises:
        ConfigError: the run has a checkpoint already, or once had one; nothing was written.
        StoreError: the storage failed.
    """
    journal = Journal.create(store, clock=clock)

    def refuse_old_run(run: RunState) -> None:
        if run.commits:
            raise ConfigError(
                f"{store.uri} has a checkpoint of step {run.commits[-1].step}", kind="import",
                hint="Import into a new run: name another URI",
            )  # fmt: skip

    lease = journal.claim(origin, purpose=PURPOSE, unless=refuse_old_run)
    try:
        event = CheckpointWriter(journal, lease, origin, clock=clock).write(state)
    except UnbrokenError as error:
        try:
            journal.append(AttemptEnded("failed", -1, str(error)), origin, lease)
        except UnbrokenError as second:
            _log.debug("the end of the import was not journalled: %s", second)
        raise
    journal.append(AttemptEnded(IMPORTED, state.step), origin, lease)
    return event
