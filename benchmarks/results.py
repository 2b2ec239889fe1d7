"""From samples to medians, a table for people and a JSON file for machines."""

from __future__ import annotations

import os
import platform
import statistics
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

Samples = dict[str, list[float]]

ROWS = {
    "stall_first": "stall, first save",
    "stall_later": "stall, later saves",
    "torch_save": "  of it torch.save alone",
    "lost_first": "training lost, first save",
    "lost_later": "training lost, later saves",
    "durable_first": "boundary to durable, first save",
    "durable_later": "boundary to durable, later saves",
    "restore": "restore into live tensors",
    "open_and_restore": "open and restore",
}


def host_facts() -> dict[str, Any]:
    """What a reader must know of the machine, and nothing that names it."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def samples_of(saved: list[dict[str, Any]], restored: list[dict[str, Any]]) -> Samples:
    """The samples of one method in seconds, by the names of :data:`ROWS`, over all its repetitions."""
    samples: Samples = {name: [] for name in ROWS}
    for repetition in saved:
        for number, save in enumerate(repetition["saves"]):
            when = "first" if number == 0 else "later"
            for name in ("stall", "durable", "lost"):
                if save[name] is not None:
                    samples[f"{name}_{when}"].append(save[name])
            if number and "torch_save" in save:
                samples["torch_save"].append(save["torch_save"])
    for repetition in restored:
        samples["restore"].append(repetition["restore"])
        samples["open_and_restore"].append(repetition["open_and_restore"])
    return samples


def summary(samples: Samples, memcpy: float) -> dict[str, dict[str, float]]:
    """Median, range and ratio to one memcpy of the state, of every row that has samples."""
    return {
        name: {
            "median_s": round(statistics.median(values), 4),
            "min_s": round(min(values), 4),
            "max_s": round(max(values), 4),
            "per_memcpy": round(statistics.median(values) / memcpy, 2),
            "samples": len(values),
        }
        for name, values in samples.items()
        if values
    }


def print_table(result: dict[str, Any]) -> None:
    """The medians, and how many copies of the state in memory each is worth; wide enough for every name."""
    console = Console(width=110)
    setup, memcpy = result["setup"], result["memcpy"]
    console.print(
        f"\n{setup['state_bytes'] / 1e9:.3g} GB to {setup['store']}, {setup['repetitions']} repetitions",
        highlight=False,
    )
    table = Table(box=box.MARKDOWN)  # as it stands in README.md
    table.add_column("seconds (x one memcpy)", no_wrap=True)
    for method in result["methods"]:
        table.add_column(method, justify="right")
    for name, words in ROWS.items():
        cells = [_cell(method["summary"].get(name)) for method in result["methods"].values()]
        table.add_row(words, *cells)
    stored = [f"{method['stored_bytes'] / 1e6:,.1f} MB" for method in result["methods"].values()]
    table.add_row("bytes stored by a save", *stored)
    table.add_row("restored bit for bit", *("yes" for _ in result["methods"]))
    console.print(table)
    console.print(
        f"one memcpy of the state: {memcpy['warm_s']:.3f} s into warm memory, {memcpy['fresh_s']:.3f} s into fresh; "
        f"{setup['payload']}; {result['host']['cores']} cores, torch {setup['torch']}",
        highlight=False,
    )


def _cell(row: dict[str, float] | None) -> str:
    if row is None:
        return "-"
    digits = 3 if row["median_s"] < 10 else 1
    return f"{row['median_s']:.{digits}f} ({row['per_memcpy']:.1f}x)"
