"""From samples to medians, and to a table for people."""

from __future__ import annotations

import os
import platform
import statistics
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

SECONDS = {
    "stall_first": "stall, first",
    "stall_later": "stall, later",
    "lost_first": "lost, first",
    "lost_later": "lost, later",
    "durable_first": "durable, first",
    "durable_later": "durable, later",
    "restore": "restore",
    "open_and_restore": "open and restore",
}
"""Rows in seconds, each also as a multiple of one copy of the state in memory."""


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


def summary_of(samples: dict[str, Any], memcpy: float) -> dict[str, dict[str, float]]:
    """Median and range of everything that was measured of one method, over its repetitions; seconds, bytes, counts."""
    values: dict[str, list[float]] = {}
    for repetition in samples["saved"]:
        for number, save in enumerate(repetition["saves"]):
            when = "later" if number else "first"
            for name in ("stall", "lost", "durable", "stored"):
                if save[name] is not None:
                    values.setdefault(f"{name}_{when}", []).append(save[name])
            if save["stored"]:
                values.setdefault(f"processor_per_gb_{when}", []).append(save["processor"] / save["stored"] * 1e9)
    for repetition in samples["restored"]:
        for name in ("restore", "open_and_restore"):
            if name in repetition:
                values.setdefault(name, []).append(repetition[name])
    for name, peak in (samples["memory"] or {}).items():
        values[f"memory_{name}"] = [peak]
    return {name: _about(each, memcpy if name in SECONDS else 0.0) for name, each in values.items()}


def _about(values: list[float], memcpy: float) -> dict[str, float]:
    median = statistics.median(values)
    about = {"median": round(median, 4), "min": round(min(values), 4), "max": round(max(values), 4)}
    return {**about, "samples": len(values), **({"per_memcpy": round(median / memcpy, 2)} if memcpy else {})}


def print_table(result: dict[str, Any]) -> None:
    """The medians; as it stands in README.md."""
    console = Console(width=400, soft_wrap=True)
    setup, memcpy, host = result["setup"], result["memcpy"], result["host"]
    console.print(
        f"\n{setup['state_bytes'] / 1e9:.3g} GB to {setup['store']}, loop '{setup['loop']}': forward and backward "
        f"{setup['forward_backward_s']:.3f} s of a step of {setup['step_s']:.3f} s, a save every "
        f"{setup['steps_between']} steps, {setup['repetitions']} repetitions of {setup['saves']} saves\n",
        highlight=False,
    )
    console.print(_frozen_table(result) if setup["frozen"] else _table(result))
    for name, reason in result["skipped"].items():
        console.print(f"{name}: {reason if reason.startswith('failed') else f'skipped: {reason}'}", highlight=False)
    console.print(
        f"seconds (x one memcpy of the state: {memcpy['warm_s']:.3f} s into warm memory, {memcpy['fresh_s']:.3f} s "
        f"into fresh); {setup['payload']}; {host['cores']} cores, torch {setup['torch']}",
        highlight=False,
    )


def _table(result: dict[str, Any]) -> Table:
    table = Table(box=box.MARKDOWN)
    table.add_column("method", no_wrap=True)
    for title in (*SECONDS.values(), "written", "CPU s/GB", "memory: save", "restore", "snapshot", "left behind"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, method in result["methods"].items():
        about = method["summary"]
        table.add_row(
            name,
            *(_seconds(about.get(row)) for row in SECONDS),
            _median(about, "stored_later", 1e6, "{:,.0f} MB"),
            _median(about, "processor_per_gb_later", 1, "{:.2f}"),
            _median(about, "memory_save", result["setup"]["state_bytes"], "{:.2f} states"),
            _median(about, "memory_restore", 1e6, "{:,.0f} MB"),
            snapshot(name, method),
            left_behind(method),
        )
    return table


def _frozen_table(result: dict[str, Any]) -> Table:
    setup = result["setup"]
    changed = setup["trained_bytes"]
    table = Table(box=box.MARKDOWN)
    table.add_column("method", no_wrap=True)
    for title in ("state", "changed by a step", "first save", "later saves", "later / changed", "snapshot"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, method in result["methods"].items():
        about = method["summary"]
        table.add_row(
            name,
            f"{setup['state_bytes'] / 1e6:,.1f} MB",
            f"{changed / 1e6:,.1f} MB",
            _median(about, "stored_first", 1e6, "{:,.1f} MB"),
            _median(about, "stored_later", 1e6, "{:,.1f} MB"),
            _median(about, "stored_later", changed, "{:.4f}"),
            snapshot(name, method),
        )
    return table


def snapshot(name: str, method: dict[str, Any]) -> str:
    """Whether what came back is what was there when it was saved."""
    if name == "nothing":
        return "-"
    runs = len(method["restored"]) + (method["memory"] is not None)
    words = f"TORN ({method['torn']} of {runs})" if method["torn"] else "whole"
    return f"{words}, failed {len(method['failed'])} times" if method["failed"] else words


def left_behind(method: dict[str, Any]) -> str:
    """The most that any repetition left: processes, shared memory, files, unfinished uploads."""
    words = {
        "processes": ("{} processes", 1), "shared_memory_bytes": ("{:,.0f} MB shared", 1e6),
        "file_bytes": ("{:,.1f} MB files", 1e6), "uploads": ("{} uploads", 1),
    }  # fmt: skip
    most = {name: max((left[name] for left in method["left"]), default=0) for name in words}
    said = [
        text.format(most[name] / unit if unit > 1 else most[name]) for name, (text, unit) in words.items() if most[name]
    ]
    return ", ".join(said) or "nothing"


def _seconds(row: dict[str, float] | None) -> str:
    if row is None:
        return "-"
    return f"{row['median']:.{3 if abs(row['median']) < 10 else 1}f} ({row['per_memcpy']:.1f}x)"


def _median(about: dict[str, dict[str, float]], row: str, unit: float, words: str) -> str:
    return words.format(about[row]["median"] / unit) if row in about else "-"
