"""What the processes of one measurement cost: processor time, memory, and what they leave behind.

Processes are known by a mark in their environment, so that also one that left its parent is found.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MARK = "BENCHMARK_MARK"
_TICKS = os.sysconf("SC_CLK_TCK")
_SHARED_MEMORY = Path("/dev/shm")
_SAMPLE_SECONDS = 0.05
_LEAVE_SECONDS = 5.0


def marked_processes(mark: str) -> list[int]:
    """The ids of the processes whose environment carries the mark, this process not among them."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue  # it ended, or is not ours
    return found


class SaverTime:
    """Processor seconds of everything that is not the training itself, in this process and those it started.

    Counted are other processes, threads that were not there when this was made, and the training's own threads while
    :meth:`blocked` is entered. Make it when the training is warm and the saving not yet open.
    """

    def __init__(self) -> None:
        self._training_threads = _thread_seconds()
        self._blocked = 0.0
        self._entered = 0.0

    def __enter__(self) -> None:
        self._entered = self._training_time()

    def __exit__(self, *_: object) -> None:
        self._blocked += self._training_time() - self._entered

    def total(self) -> float:
        """Seconds until now."""
        others = sum(_process_seconds(number) for number in marked_processes(os.environ.get(MARK, "")))
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return others + ended.ru_utime + ended.ru_stime + time.process_time() - self._training_time() + self._blocked

    def _training_time(self) -> float:
        return sum(seconds for thread, seconds in _thread_seconds().items() if thread in self._training_threads)


def _thread_seconds() -> dict[int, float]:
    seconds = {}
    for folder in Path("/proc/self/task").iterdir():
        try:
            seconds[int(folder.name)] = int((folder / "schedstat").read_text().split()[0]) / 1e9
        except OSError:
            continue  # it ended
    return seconds


def _process_seconds(number: int) -> float:
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(fields[place]) for place in (11, 12, 13, 14)) / _TICKS


@dataclass
class MemoryWatch:
    """Samples the memory of all marked processes in a thread, from the start of ``with`` to its end.

    What several processes share counts once (``Pss``); mapped files do not count, anonymous and shared memory do.
    Reading it holds the processes up: do not time them in the same run.
    """

    mark: str
    samples: list[tuple[float, int]] = field(default_factory=list)
    """Monotonic time and bytes."""

    def __enter__(self) -> MemoryWatch:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            self.samples.append((time.monotonic(), sum(_memory(number) for number in marked_processes(self.mark))))

    def peak_over(self, begin: float, end: float) -> int:
        """Bytes by which the highest sample up to ``end`` lies above the last one before ``begin``.

        Raises:
            ValueError: there is no sample before or none between.
        """
        before = [size for at, size in self.samples if at <= begin]
        between = [size for at, size in self.samples if begin < at <= end]
        if not before or not between:
            raise ValueError(f"{len(before)} samples before the measured time, {len(between)} in it")
        return max(between) - before[-1]


def _memory(number: int) -> int:
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def leftovers(mark: str, folders: list[Path]) -> dict[str, int]:
    """What is still there some seconds after a trainer ended: processes, named shared memory, files.

    All of it is removed. Shared memory is known by the mark in its name.

    Args:
        mark: of the trainer's processes.
        folders: where only this trainer had reason to write; bytes in them count as files.
    """
    deadline = time.monotonic() + _LEAVE_SECONDS
    while (alive := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for number in alive:
        _end(number)
    segments = [path for path in _SHARED_MEMORY.glob("*") if mark in path.name]
    shared = sum(path.stat().st_size for path in segments)
    for path in segments:
        path.unlink(missing_ok=True)
    files = sum(path.lstat().st_size for folder in folders for path in _files(folder))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return {"processes": len(alive), "shared_memory_bytes": shared, "file_bytes": files}


def _end(number: int) -> None:
    try:
        os.kill(number, signal.SIGKILL)
    except ProcessLookupError:
        return


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
