"""Processor time, memory and leftovers are counted where they are, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DEADLINE = 30.0


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import process_costs

    return process_costs


def burn(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def child(script: str, mark: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, env={"BENCHMARK_MARK": mark}, stdout=subprocess.PIPE, stdin=subprocess.PIPE)


def test_the_training_s_own_time_is_the_saver_s_only_while_it_blocks(costs: ModuleType) -> None:
    saver = costs.SaverTime()
    begun = saver.total()
    burn(0.2)
    assert saver.total() - begun < 0.1
    with saver:
        burn(0.2)
    blocked = saver.total() - begun
    assert blocked >= 0.2
    thread = threading.Thread(target=burn, args=(0.2,))
    thread.start()
    thread.join()
    assert saver.total() - begun >= blocked + 0.2


def test_another_process_s_time_is_the_saver_s(costs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_MARK", "time-test")
    saver = costs.SaverTime()
    script = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"
    with child(script, "time-test") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert saver.total() >= 0.25
        process.communicate()
    assert saver.total() >= 0.25  # also when it has ended


def test_memory_is_what_was_touched_after_the_beginning(costs: ModuleType) -> None:
    script = "import sys\nx = b'x' * (80 << 20)\nsys.stdin.readline()\ny = b'y' * (40 << 20)\nprint(1, flush=True)\n"
    with child(f"{script}sys.stdin.readline()", "memory-test") as process, costs.MemoryWatch("memory-test") as watch:
        assert process.stdin is not None
        assert process.stdout is not None
        wait_for(lambda: watch.samples and watch.samples[-1][1] > 80 << 20)
        began = time.monotonic()
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        wait_for(lambda: watch.samples[-1][1] > 120 << 20)
        peak = watch.peak_over(began, time.monotonic())
        process.communicate()
    assert 38 << 20 < peak < 45 << 20
    with pytest.raises(ValueError, match="0 samples before"):
        watch.peak_over(0.0, time.monotonic())


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + DEADLINE
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_trainer_leaves_is_counted_and_removed(
    costs: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(costs, "_LEAVE_SECONDS", 0.0)
    monkeypatch.setattr(costs, "_SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / "left-test_0").write_bytes(b"x" * 100)
    (tmp_path / "shm" / "of-somebody-else").write_bytes(b"x")
    (tmp_path / "files" / "deep").mkdir(parents=True)
    (tmp_path / "files" / "deep" / "one").write_bytes(b"x" * 10)
    with child("print(1, flush=True)\nimport sys\nsys.stdin.read()", "left-test") as process:
        assert process.stdout is not None
        process.stdout.readline()
        left = costs.leftovers("left-test", [tmp_path / "files", tmp_path / "never"])
        assert process.wait(DEADLINE) == -9
    assert left == {"processes": 1, "shared_memory_bytes": 100, "file_bytes": 10}
    assert [path.name for path in tmp_path.rglob("*")] == ["shm", "of-somebody-else"]
    assert costs.leftovers("left-test", []) == {"processes": 0, "shared_memory_bytes": 0, "file_bytes": 0}
