"""How fast a state comes back, beside the barest way to get the same bytes.

    python benchmarks/restore_rate.py --size 1GB --repetitions 7 --out rates.json

From S3 (the byte server beside this file): ``CheckpointManager.restore`` into a model and an optimizer that have
stepped; bare ranged ``obstore`` GETs of the same packs, as large and as many at once, whose bytes are dropped, or
copied to memory that was touched before. From a folder with a warm page cache: the same restore, and ``torch.load``
with ``load_state_dict``. From memory: what a restart on the same node takes from the slot that the agent kept.

A restore digests every byte; the others check nothing. Methods take turns; tensors have 64 MiB and are zeroed before
each turn, and what came back is compared with what was saved. *new optimizer* has no moments yet, so that two thirds of
the state need fresh memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import obstore
import torch
import xxhash
from obstore.store import S3Store
from prefault import prefaulted, touch_memory
from results import host_facts
from rich import box
from rich.console import Console
from rich.table import Table
from save_restore import parse_size
from servers import BUCKET, running_server

import unbroken
from unbroken.checkpoint import Manifest, load_manifest
from unbroken.checkpoint.chunks import READERS
from unbroken.journal import Journal
from unbroken.store import open_store
from unbroken.training.capture import capture
from unbroken.training.live import live_tensors
from unbroken.training.objects import StateObject, state_objects
from unbroken.training.restore import apply_state, bytes_of, load_state

RANGE = 16 << 20

ROWS = {
    "s3": "S3: restore into existing tensors",
    "s3_new": "S3: restore, new optimizer",
    "bare": "S3: bare ranged GETs, dropped",
    "bare_placed": "S3: bare ranged GETs, copied into place",
    "folder": "folder: restore into existing tensors",
    "torch": "folder: torch.load + load_state_dict",
    "memory": "memory: restore into existing tensors",
    "memory_new": "memory: restore, new optimizer",
}
RATIOS = {
    "s3 / bare": ("bare", "s3", 0.85),
    "s3 / bare, copied into place": ("bare_placed", "s3", None),
    "folder / torch.load": ("torch", "folder", None),
    "memory / s3": ("s3", "memory", 5.0),
    "memory / s3, new optimizer": ("s3_new", "memory_new", 5.0),
    "memory / torch.load": ("torch", "memory", None),
}


TENSOR = 64 << 20


class Training:
    """Parameters and their AdamW moments, of about ``size`` bytes together; a new one has no moments yet."""

    def __init__(self, size: int, *, stepped: bool) -> None:
        length = min(TENSOR, size // 3) // 4
        self.model = torch.nn.ParameterList(torch.randn(length) for _ in range(max(1, round(size / length / 12))))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        if stepped:
            for parameter in self.model.parameters():
                parameter.grad = torch.randn_like(parameter)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """What is saved."""
        return {"model": self.model, "optimizer": self.optimizer}

    def objects(self) -> list[StateObject]:
        """The same, as a restore takes it."""
        return [item for item in state_objects(self.state()) if not item.generator]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name."""
        return capture(self.objects()).tensors

    def digests(self) -> dict[str, str]:
        """Of every tensor's bytes."""
        return {name: xxhash.xxh3_128_hexdigest(bytes_of(tensor)) for name, tensor in self.tensors().items()}


class NoStore:
    """The store of a restore that must not ask one."""

    uri = "nowhere"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the store was asked to {name}")


class Subject:
    """A trained state, saved to S3 and to a folder, and the ways to get it back."""

    def __init__(self, size: int, folder: Path) -> None:
        self.training = Training(size, stepped=True)
        self.want = self.training.digests()
        self.folder = folder
        self.managers = {
            "s3": unbroken.CheckpointManager(f"s3://{BUCKET}/run"),
            "folder": unbroken.CheckpointManager(str(folder / "run")),
        }
        for manager in self.managers.values():
            manager.save(1, self.training.state()).wait(600)
        torch.save({name: item.state_dict() for name, item in self.training.state().items()}, folder / "state.pt")
        self.manifest = self._manifest()
        self.staged = {name: bytes_of(held.clone()) for name, held in self.training.tensors().items()}
        self.client = S3Store(
            BUCKET, prefix="run", client_options={"allow_http": True, "timeout": timedelta(seconds=180)}
        )
        self.target = memoryview(prefaulted(self.manifest.size))

    def close(self) -> None:
        """End the attempts."""
        for manager in self.managers.values():
            manager.close()

    def _manifest(self) -> Manifest:
        store = open_store(f"s3://{BUCKET}/run")
        return load_manifest(store, Journal.open(store).state.checkpoints[-1])

    def restore(self, place: str, training: Training) -> None:
        """As a program does it."""
        self.managers[place].restore(training.state())

    def from_memory(self, training: Training) -> None:
        """As a trainer does it that finds the staged bytes of the newest checkpoint on its node."""
        objects = training.objects()
        live = live_tensors(objects, self.manifest)
        state = load_state(NoStore(), self.manifest, live=live, staged=self.staged)  # type: ignore[arg-type]
        apply_state(objects, state)

    def load_torch(self, training: Training) -> None:
        """The naive way."""
        state = torch.load(self.folder / "state.pt", weights_only=True)
        for name, item in training.state().items():
            item.load_state_dict(state[name])

    def bare(self, *, placed: bool) -> None:
        """GET all tensors' bytes."""
        at, ranges = 0, []
        for record in self.manifest.tensors:
            for piece in record.slices:
                for start in range(0, piece.length, RANGE):
                    length = min(RANGE, piece.length - start)
                    ranges.append((self.manifest.packs[piece.pack].key, piece.start + start, length, at))
                    at += length

        def get(wanted: tuple[str, int, int, int]) -> None:
            key, start, length, place = wanted
            data = obstore.get_range(self.client, key, start=start, length=length)
            if placed:
                self.target[place : place + length] = memoryview(data)

        with ThreadPoolExecutor(READERS) as pool:
            for _ in pool.map(get, ranges):
                pass


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and CPU seconds of each method."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unbroken-benchmark-")))
        environment = stack.enter_context(
            running_server("memory", int(options.size * 1.1) + (64 << 20), far=options.far)
        )
        os.environ.update(environment)
        subject = Subject(options.size, folder)
        stack.callback(subject.close)
        ways = methods(subject)
        for repetition in range(options.repetitions + 1):
            for name in [*ways][repetition % len(ways) :] + [*ways][: repetition % len(ways)]:
                sample = _timed(subject, *ways[name], options.size)
                if repetition:  # the first turn finds things cold
                    samples[name].append(sample)
    return {"host": host_facts(), "setup": _setup(options, subject), "methods": _summary(samples)}


Way = tuple[Callable[[Training], None], bool, bool]


def methods(subject: Subject) -> Mapping[str, Way]:
    """What each method does with a training; whether that is a new one; whether it puts the state into it."""
    return {
        "s3": (partial(subject.restore, "s3"), False, True),
        "s3_new": (partial(subject.restore, "s3"), True, True),
        "bare": (lambda _: subject.bare(placed=False), False, False),
        "bare_placed": (lambda _: subject.bare(placed=True), False, False),
        "folder": (partial(subject.restore, "folder"), False, True),
        "torch": (subject.load_torch, False, True),
        "memory": (subject.from_memory, False, True),
        "memory_new": (subject.from_memory, True, True),
    }


def _timed(
    subject: Subject, work: Callable[[Training], None], new: bool, loads: bool, size: int
) -> tuple[float, float]:
    training = Training(size, stepped=False) if new else subject.training
    for tensor in training.tensors().values():
        tensor.zero_()
    touch_memory(size)
    before, began = _cpu(), time.monotonic()
    work(training)
    seconds, cpu = time.monotonic() - began, _cpu() - before
    if loads and training.digests() != subject.want:
        raise RuntimeError("what came back is not what was saved")
    return seconds, cpu


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _setup(options: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    return {
        "state_bytes": subject.manifest.size, "repetitions": options.repetitions, "readers": READERS,
        "range_bytes": RANGE, "far": options.far, "torch": torch.__version__, "obstore": obstore.__version__,
    }  # fmt: skip


def _summary(samples: Mapping[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median_s": round(statistics.median(seconds for seconds, _ in found), 4),
            "min_s": round(min(seconds for seconds, _ in found), 4),
            "max_s": round(max(seconds for seconds, _ in found), 4),
            "cpu_s": round(statistics.median(cpu for _, cpu in found), 4),
        }
        for name, found in samples.items()
    }


def print_result(result: dict[str, Any]) -> None:
    """Tables as they stand in README.md."""
    console = Console(width=110)
    size = result["setup"]["state_bytes"] / 1e9
    table = Table(box=box.MARKDOWN)
    for column in ("", "seconds", "fastest - slowest", "GB/s", "CPU s/GB"):
        table.add_column(column, no_wrap=True, justify="right" if column else "left")
    for name, words in ROWS.items():
        row = result["methods"][name]
        table.add_row(
            words, f"{row['median_s']:.3f}", f"{row['min_s']:.3f} - {row['max_s']:.3f}",
            f"{size / row['median_s']:.2f}", f"{row['cpu_s'] / size:.2f}",
        )  # fmt: skip
    console.print(table)
    for words, (slow, fast, target) in RATIOS.items():
        ratio = result["methods"][slow]["median_s"] / result["methods"][fast]["median_s"]
        wanted = f" (target {target})" if target is not None else ""
        console.print(f"rate of {words}: {ratio:.2f}{wanted}", highlight=False)


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description="measure restores from S3, a folder and memory")
    parser.add_argument("--size", type=parse_size, default="1GB", help="of the state; tensors have 64 MiB")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--far", action="store_true", help="90 MB/s and 20 ms for each connection")
    parser.add_argument("--out", type=Path, help="write all figures there, as JSON")
    options = parser.parse_args()
    result = measure(options)
    print_result(result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
