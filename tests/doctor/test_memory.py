from __future__ import annotations

from pathlib import Path

import pytest

from unbroken.doctor import Place
from unbroken.doctor.memory import check_memory, judged
from unbroken.training.memory import Room

GB = 1_000_000_000
ROOM = Room(10 * GB, "the memory of this machine")


def _tree(root: Path, limit: int, used: int) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemAvailable: {64 * GB // 1024} kB\n")
    (root / "proc/self/cgroup").write_text("0::/pod\n")
    (root / "proc/self/mountinfo").write_text("31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    group = root / "sys/fs/cgroup/pod"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text("inactive_file 0\n")


@pytest.mark.parametrize(
    ("state", "severity", "text"),
    [
        (4 * GB, "ok", "two copies of the state (4.0 GB) fit"),
        (6 * GB, "warning", "one copy"),
        (11 * GB, "warning", "no copy"),
    ],
)
def test_slots_follow_from_the_container_s_limit(tmp_path: Path, state: int, severity: str, text: str) -> None:
    _tree(tmp_path, 11 * GB, 1 * GB)
    (found,) = check_memory(Place(root=tmp_path, state=state))
    assert found.severity == severity
    assert text in found.found
    assert "the container's limit of 11 GB leaves 10 GB" in found.found
    assert bool(found.todo) == (severity != "ok")


def test_what_the_training_takes_is_not_there_for_copies() -> None:
    assert judged(ROOM, 4 * GB, None).severity == "ok"
    assert "one copy" in judged(ROOM, 4 * GB, 3 * GB).found


def test_a_training_that_does_not_fit_is_an_error() -> None:
    found = judged(ROOM, None, 12 * GB)
    assert (found.severity, found.exit_code) == ("error", 78)


def test_without_a_state_the_largest_that_fits_is_said() -> None:
    found = judged(ROOM, None, None)
    assert found.severity == "note"
    assert "up to 4.6 GB" in found.found
    assert judged(ROOM, 4_600_000_000, None).severity == "ok"
    assert judged(ROOM, 4_700_000_000, None).severity == "warning"


def test_the_memory_to_add_is_enough() -> None:
    text = judged(ROOM, 6 * GB, None).todo
    assert text == "Give the node or the container 2.9 GB more memory"
    assert judged(Room(ROOM.size + 2_900_000_000, ""), 6 * GB, None).severity == "ok"
