"""Files written past the page cache: the same bytes, wherever they lie and whatever the file system allows."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from unbroken.store import uncached
from unbroken.store.uncached import LARGE, write_file

MiB = 1 << 20
PAGE = 4096


def lying_at(shift: int, size: int) -> memoryview:
    """Noise that begins ``shift`` bytes after a page's beginning."""
    memory = memoryview(mmap.mmap(-1, size + PAGE))
    view = memory[shift : shift + size]
    view[:] = random.Random(size + shift).randbytes(size)
    return view


LAYOUTS: dict[str, list[tuple[int, int]]] = {
    "one aligned": [(0, 9 * MiB)],
    "pages, then a rest": [(0, 5 * MiB + 7)],
    "just large": [(0, LARGE)],
    "not large": [(0, LARGE - 1)],
    "a page before": [(3, PAGE), (0, 6 * MiB), (0, 2 * MiB)],
    "a header before": [(0, 64), (0, 6 * MiB)],
    "badly lying": [(8, 9 * MiB), (1, 5 * MiB + 3)],
    "good and bad in turn": [(0, 2 * MiB), (8, 2 * MiB), (0, 2 * MiB + 5), (0, 3 * MiB), (512, 2 * MiB)],
    "many small": [(number % 64, 40_000 + number) for number in range(120)],
    "small, large, small": [(0, 10), (0, 5 * MiB), (0, 10), (0, PAGE - 20), (0, 4 * MiB), (5, 1)],
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def pieces(request: pytest.FixtureRequest) -> list[memoryview]:
    return [lying_at(*each) for each in request.param]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def write(path: Path, pieces: Sequence[memoryview]) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        write_file(descriptor, iter(pieces), sum(map(len, pieces)))
    finally:
        os.close(descriptor)


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def whole(pieces: Sequence[memoryview]) -> bytes:
    return b"".join(pieces)


def test_the_file_is_the_pieces_one_after_another(path: Path, pieces: list[memoryview]) -> None:
    write(path, pieces)
    assert path.read_bytes() == whole(pieces)


def test_a_file_system_without_the_flag_gets_the_same_bytes(
    path: Path, pieces: list[memoryview], monkeypatch: pytest.MonkeyPatch
) -> None:
    control = fcntl.fcntl

    def refuse(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    write(path, pieces)
    assert path.read_bytes() == whole(pieces)


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_a_file_system_that_takes_the_flag_and_refuses_the_writes_gets_the_same_bytes(
    path: Path, pieces: list[memoryview], monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    direct: list[int] = []

    def refusing(descriptor: int, data: memoryview) -> int:
        if is_direct(descriptor):
            direct.append(len(data))
            if len(direct) > allowed:
                raise OSError(errno.EINVAL, "Invalid argument")
        return written(descriptor, data)

    written = os.write
    monkeypatch.setattr(os, "write", refusing)
    write(path, pieces)
    assert path.read_bytes() == whole(pieces)


@pytest.mark.parametrize("most", [PAGE, 3 * PAGE, 1000])
def test_writes_that_are_cut_short_are_gone_on_with(path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    written = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: written(descriptor, data[:most]))
    pieces = [lying_at(*each) for each in LAYOUTS["good and bad in turn"]]
    write(path, pieces)
    assert path.read_bytes() == whole(pieces)


def test_any_other_error_is_the_callers(path: Path, pieces: list[memoryview], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(OSError, match="Input/output"):
        write(path, pieces)


class Writes:
    """What is written, and how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.direct: list[int] = []
        self.cached: list[int] = []
        write = os.write

        def note(descriptor: int, data: memoryview) -> int:
            count = write(descriptor, data)
            (self.direct if is_direct(descriptor) else self.cached).append(count)
            return count

        monkeypatch.setattr(os, "write", note)


@pytest.fixture
def direct_folder(tmp_path: Path) -> Path:
    """A folder on a file system that has O_DIRECT, and writes from memory at multiples of a page alone."""
    try:
        descriptor = os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600)
    except OSError as error:
        pytest.skip(f"no O_DIRECT in the temporary folder: {error}")
    try:
        os.write(descriptor, lying_at(8, PAGE))
    except OSError:
        return tmp_path
    finally:
        os.close(descriptor)
    pytest.skip("this file system takes O_DIRECT from anywhere")


def test_what_lies_well_is_written_from_where_it_lies(direct_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    pieces = [lying_at(9, PAGE), lying_at(0, 7 * MiB), lying_at(0, 2 * MiB + 100)]
    write(direct_folder / "file", pieces)
    assert (writes.direct, writes.cached) == ([PAGE, 7 * MiB, 2 * MiB], [100])


def test_what_lies_badly_is_copied_through_a_buffer_of_bounded_size(
    direct_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(monkeypatch)
    write(direct_folder / "file", [lying_at(8, 9 * MiB)])
    assert (writes.direct, writes.cached) == ([4 * MiB, 4 * MiB], [MiB])


def test_a_small_file_is_written_as_any_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes(monkeypatch)
    write(path, [lying_at(0, LARGE // 2)])
    assert (writes.direct, writes.cached) == ([], [LARGE // 2])


@pytest.mark.parametrize("size", [10, 9 * MiB])
def test_the_bytes_are_on_the_disk_when_it_returns(path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    done: list[str] = []

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (done.append(name), call(*arguments))[1]

    monkeypatch.setattr(uncached.os, "write", noting("write", os.write))
    monkeypatch.setattr(uncached.os, "fsync", noting("fsync", os.fsync))
    write(path, [lying_at(0, size)])
    assert done[-1] == "fsync"
    assert done.count("fsync") == 1
