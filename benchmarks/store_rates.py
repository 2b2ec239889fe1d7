"""How fast a checkpoint becomes durable, beside the barest way to put the same bytes into the same store.

    python benchmarks/store_rates.py --size 1GB --repetitions 7 --out rates.json

To S3 (the byte server beside this file): a save by ``CheckpointWriter``, and one multipart ``obstore.put`` of the same
tensors with as many parts under way. To a folder: a save, and a sequential write with fsync, buffered and O_DIRECT.
A save digests every byte, compares each tensor with the checkpoint before, and commits.

Tensors of 64 MiB lie in shared memory that was touched before, and change between two saves. Methods take turns. The
CPU seconds are those of this process, user and system together.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import mmap
import os
import resource
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store
from prefault import touch_memory
from results import host_facts
from rich import box
from rich.console import Console
from rich.table import Table
from save_restore import parse_size
from servers import BUCKET, running_server

from unbroken.checkpoint import CheckpointWriter, HostState, HostTensor, TensorRef, encode_tree
from unbroken.journal import Journal, Origin
from unbroken.store import open_store

TENSOR = 64 << 20
PART = 16 << 20
PARTS_AT_ONCE = 8
"""As many as a save has under way."""

Rates = dict[str, dict[str, list[float]]]


@dataclass
class State:
    """Tensors in shared memory: each begins ``shift`` bytes after a page's beginning."""

    size: int
    shift: int = 0
    tensors: list[memoryview] = field(init=False)

    def __post_init__(self) -> None:
        lengths = [min(TENSOR, self.size - start) for start in range(0, self.size, TENSOR)]
        descriptor = os.memfd_create("state")
        os.ftruncate(descriptor, len(lengths) * (TENSOR + mmap.PAGESIZE))
        memory = memoryview(mmap.mmap(descriptor, 0))
        os.close(descriptor)
        starts = [number * (TENSOR + mmap.PAGESIZE) + self.shift for number in range(len(lengths))]
        self.tensors = [memory[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        noise = secrets.token_bytes(1 << 20)
        for tensor in self.tensors:
            for at in range(0, len(tensor), len(noise)):
                tensor[at : at + len(noise)] = noise[: len(tensor) - at]

    def change(self) -> None:
        """As an optimizer's step does: no chunk stays what it was."""
        for tensor in self.tensors:
            for at in range(0, len(tensor), PART):
                tensor[at : at + 16] = secrets.token_bytes(16)

    def at_step(self, step: int) -> HostState:
        """What a checkpoint is written from."""
        named = {f"t{number:03d}": tensor for number, tensor in enumerate(self.tensors)}
        tree = encode_tree({"model": {name: TensorRef(name) for name in named}})
        held = [HostTensor(name, "uint8", (len(tensor),), tensor) for name, tensor in named.items()]
        return HostState(step, tree, held)


def main() -> None:
    """Measure, print, write."""
    options = _options()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "host": host_facts(), "bytes": options.size,
        "repetitions": options.repetitions, "tables": {},
    }  # fmt: skip
    os.environ.update(AWS_UNSIGNED_PAYLOAD="true", AWS_EC2_METADATA_DISABLED="true")
    for store in [options.store] if options.store else ["s3", "folder"]:
        result["tables"][store] = _summary(_s3(options) if store == "s3" else _folder(options), options.size)
        _print_table(store, result["tables"][store], options)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=parse_size, default="1GB", help="of the state")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--store", choices=["s3", "folder"], default="", help="one of them alone")
    parser.add_argument("--folder", default="", help="where the folder store is made; the temporary folder by default")
    parser.add_argument("--out", default="", help="write every sample here, as JSON")
    options = parser.parse_args()
    options.size -= options.size % mmap.PAGESIZE  # as O_DIRECT wants it
    if options.repetitions < 1 or options.size < 1:
        parser.error("at least 1 repetition and 1 page")
    return options


def _s3(options: argparse.Namespace) -> Rates:
    state = State(options.size)
    rates: Rates = {}
    touch_memory(3 * options.size)  # the server's: a virtual machine's host takes idle pages away
    for repetition in range(options.repetitions):
        with running_server("memory", 3 * options.size + (64 << 20)) as environment, _environment(environment):
            save = _prepared_save(f"s3://{BUCKET}/run", state)
            bare = _prepared_bare_put(environment["AWS_ENDPOINT_URL"], state)
            _in_turn(rates, repetition, {"save": save, "bare put": bare}, state)
    return rates


def _folder(options: argparse.Namespace) -> Rates:
    state, shifted = State(options.size), State(options.size, shift=8)
    rates: Rates = {}
    for repetition in range(options.repetitions):
        touch_memory(2 * options.size)  # the page cache's
        with tempfile.TemporaryDirectory(prefix="unbroken-benchmark-", dir=options.folder or None) as name:
            methods = {
                "save": _prepared_save(f"{name}/run", state),
                "save, tensors not aligned": _prepared_save(f"{name}/shifted", shifted),
                "bare buffered": functools.partial(_write, name, state, 0),
                "bare O_DIRECT": functools.partial(_write, name, state, os.O_DIRECT),
            }
            _in_turn(rates, repetition, methods, state, shifted)
    return rates


def _in_turn(rates: Rates, repetition: int, methods: dict[str, Callable[[], None]], *states: State) -> None:
    """Measure each method once, beginning with another one in each repetition."""
    names = list(methods)
    first = repetition % len(names)
    for name in names[first:] + names[:first]:
        for state in states:
            state.change()
        os.sync()  # what others wrote must not be on this one's bill
        cpu, began = _cpu_seconds(), time.monotonic()
        methods[name]()
        samples = rates.setdefault(name, {"wall": [], "cpu": []})
        samples["wall"].append(time.monotonic() - began)
        samples["cpu"].append(_cpu_seconds() - cpu)
    print(f"repetition {repetition + 1} done", file=sys.stderr, flush=True)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _prepared_save(uri: str, state: State) -> Callable[[], None]:
    """A save of a run that has a checkpoint already, with every connection open."""
    journal = Journal.create(open_store(uri, create=True))
    origin = Origin("host", os.getpid())
    writer = CheckpointWriter(journal, journal.claim(origin), origin)
    writer.write(state.at_step(1))

    def save() -> None:
        assert writer.write(state.at_step(2)).written >= state.size

    return save


def _prepared_bare_put(endpoint: str, state: State) -> Callable[[], None]:
    store = S3Store(BUCKET, prefix="bare", endpoint=endpoint, client_options={"allow_http": True})

    def pieces() -> Iterator[memoryview]:
        for tensor in state.tensors:
            for at in range(0, len(tensor), PART):
                yield tensor[at : at + PART]

    obstore.put(store, "warm-up", [tensor[:PART] for tensor in state.tensors[:PARTS_AT_ONCE]], chunk_size=PART)
    return lambda: _discard(obstore.put(store, "all", pieces(), chunk_size=PART, max_concurrency=PARTS_AT_ONCE))


def _discard(_: object) -> None:
    """A put's result is of no interest."""


def _write(folder: str, state: State, flags: int) -> None:
    """A sequential write of all tensors into one file."""
    path = Path(folder, "bare")
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | flags, 0o600)
    try:
        for tensor in state.tensors:
            for at in range(0, len(tensor), PART):
                piece = tensor[at : at + PART]
                assert os.write(descriptor, piece) == len(piece)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        path.unlink()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _summary(rates: Rates, size: int) -> dict[str, Any]:
    """Medians, and the ratio of each method to the best bare one."""
    medians = {name: statistics.median(samples["wall"]) for name, samples in rates.items()}
    best = min(seconds for name, seconds in medians.items() if name.startswith("bare"))
    return {
        name: {
            "wall_s": round(medians[name], 4),
            "min_s": round(min(samples["wall"]), 4),
            "max_s": round(max(samples["wall"]), 4),
            "gb_per_s": round(size / 1e9 / medians[name], 3),
            "rate_to_best_bare": round(best / medians[name], 3),
            "cpu_s_per_gb": round(statistics.median(samples["cpu"]) / (size / 1e9), 3),
            "samples": samples,
        }
        for name, samples in rates.items()
    }


def _print_table(store: str, methods: dict[str, Any], options: argparse.Namespace) -> None:
    where = "the byte server (plain http, bodies not signed)" if store == "s3" else "a folder (fsync included)"
    console = Console(width=110)
    console.print(f"\n{options.size / 1e9:.3g} GB to {where}, {options.repetitions} repetitions", highlight=False)
    table = Table(box=box.MARKDOWN)
    for title in ("", "median s", "range", "GB/s", "x best bare", "CPU-s per GB"):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    for name, row in methods.items():
        table.add_row(
            name, f"{row['wall_s']:.3f}", f"{row['min_s']:.3f}-{row['max_s']:.3f}", f"{row['gb_per_s']:.2f}",
            f"{row['rate_to_best_bare']:.2f}", f"{row['cpu_s_per_gb']:.3f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
