"""The benchmarks run whole, at a tiny size: their numbers mean nothing here, but they must not rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SECONDS = 170
TINY = ("--size", "2MB", "--repetitions", "1", "--saves", "2", "--period", "0.02")


def run_benchmark(script: str, *arguments: str, out: Path) -> dict[str, Any]:
    warnings = ("-W", "error", "-W", "ignore:The pynvml package:FutureWarning")  # torch's word on a peer's dependency
    command = [sys.executable, *warnings, str(BENCHMARKS / script), *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "methods"),
    [
        ("s3", ["unbroken", "naive", "naive-tuned", "s3torchconnector", "s3torchconnector-thread"]),
        ("folder", ["unbroken", "unbroken-eager", "naive", "dlrover", "resiliency-ext"]),
        pytest.param("folder", ["nothing", "dcp", "dcp-thread"], marks=pytest.mark.soak),
        pytest.param("folder", ["dcp-process"], marks=pytest.mark.soak),
    ],
    ids=["s3", "folder", "dcp", "dcp-process"],
)
def test_save_restore_measures_every_method_or_says_why_not(store: str, methods: list[str], tmp_path: Path) -> None:
    result = run_benchmark(
        "save_restore.py", *TINY, "--store", store, "--loop", "short", "--no-memory", "--methods", ",".join(methods),
        out=tmp_path / "results.json",
    )  # fmt: skip
    assert set(result["methods"]) | set(result["skipped"]) == set(methods)
    assert not {
        name
        for name in result["skipped"]
        if name.startswith("unbroken") or name == "nothing" or "naive" in name or "dcp" in name
    }
    assert not any(reason.startswith("failed") for reason in result["skipped"].values()), result["skipped"]
    for name, method in result["methods"].items():
        assert len(method["saved"][0]["saves"]) == 2
        if name == "nothing":
            continue
        for row in ("stall_first", "stall_later", "durable_first", "durable_later", "restore", "open_and_restore"):
            assert method["summary"][row]["median"] > 0, (name, row)
        assert method["summary"]["stored_later"]["median"] >= result["setup"]["state_bytes"] >= 1_900_000
        assert "lost_later" in method["summary"]
        assert bool(method["torn"]) == (name == "resiliency-ext")
    text = (tmp_path / "results.json").read_text()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text


@pytest.mark.slow
@pytest.mark.soak
def test_one_command_measures_memory_far_away_and_draws(tmp_path: Path) -> None:
    result = run_benchmark(
        "save_restore.py", *TINY, "--store", "s3", "--far", "--methods", "unbroken,naive-tuned",
        "--plot", str(tmp_path / "plots" / "far.svg"), out=tmp_path / "results.json",
    )  # fmt: skip
    assert result["setup"]["rows"] > 0
    assert "90 MB/s" in result["setup"]["store"]
    for method in result["methods"].values():
        assert method["summary"]["memory_save"]["median"] > 0
        assert "memory_restore" in method["summary"]
    assert ElementTree.parse(tmp_path / "plots" / "far.svg").getroot().tag.endswith("svg")


@pytest.mark.soak
def test_beside_a_device_the_forward_and_backward_is_a_wait(tmp_path: Path) -> None:
    result = run_benchmark(
        "save_restore.py", *TINY, "--store", "folder", "--loop", "device", "--no-memory",
        "--methods", "nothing,unbroken,naive", out=tmp_path / "results.json",
    )  # fmt: skip
    setup = result["setup"]
    assert (setup["loop"], setup["rows"]) == ("device", 0)
    assert setup["forward_backward_s"] >= setup["device_s"] > 0
    assert set(result["methods"]) == {"nothing", "unbroken", "naive"}
    assert not any(method["torn"] for method in result["methods"].values())


@pytest.mark.slow
@pytest.mark.soak
def test_unbroken_writes_of_frozen_layers_nothing_twice(tmp_path: Path) -> None:
    result = run_benchmark(
        "save_restore.py", *TINY, "--store", "folder", "--frozen", "0.9", "--loop", "short", "--no-memory",
        "--methods", "unbroken,naive", out=tmp_path / "results.json",
    )  # fmt: skip
    ours, naive = (result["methods"][name]["summary"] for name in ("unbroken", "naive"))
    changed, whole = result["setup"]["trained_bytes"], result["setup"]["state_bytes"]
    assert whole > 3 * changed
    assert changed <= ours["stored_later"]["median"] < whole / 2
    assert naive["stored_later"]["median"] >= whole


def test_step_overhead_measures_the_loop(tmp_path: Path) -> None:
    result = run_benchmark("step_overhead.py", "--chunks", "5", "--steps", "50", out=tmp_path / "results.json")
    assert result["run_us"] > 0
    assert result["empty_us"] > 0


def test_a_method_that_is_not_known_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "save_restore.py"), "--methods", "unbroken,magic"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 2
    assert "no such method: magic" in done.stderr
    assert os.listdir(tmp_path) == []
