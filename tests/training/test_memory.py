"""How much memory may be taken, by the texts that Linux gives."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.training.memory import available, group_folders, group_room, host_room, kept_back, slots_that_fit

GB = 1_000_000_000
V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n"
OTHER_MOUNTS = (
    "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
)


def folders(cgroup: str, mountinfo: str) -> list[str]:
    return [str(folder) for _, folder in group_folders(cgroup, mountinfo)]


def test_meminfo_says_what_can_be_had():
    text = "MemTotal:       24684012 kB\nMemFree:        22904796 kB\nMemAvailable:   23056108 kB\nHugePages_Total: 0\n"
    assert available(text) == 23056108 * 1024
    assert available("MemFree: 5 kB\n") == 5120  # Linux before 3.14
    assert available("") is None


def test_groups_are_walked_up_to_what_is_mounted():
    assert folders("0::/a/b\n", OTHER_MOUNTS + V2_MOUNT) == [
        "/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup",
    ]  # fmt: skip
    assert folders("0::/\n", V2_MOUNT) == ["/sys/fs/cgroup"]


def test_a_version_1_group_is_found_below_the_root_of_its_mount():
    text = "9:cpu:/docker/abc\n4:memory:/docker/abc/job\n0::/\n"
    assert folders(text, OTHER_MOUNTS + V1_MOUNT) == ["/sys/fs/cgroup/memory/job", "/sys/fs/cgroup/memory"]


def test_both_versions_count_where_both_are_mounted():
    unified = V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    assert folders("4:memory:/docker/abc\n0::/\n", V1_MOUNT + unified) == [
        "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["/../outside", "/elsewhere/entirely"])
def test_a_group_of_another_name_space_is_taken_for_what_is_mounted(path):
    mount = V2_MOUNT if ".." in path else V2_MOUNT.replace("0:28 / ", "0:28 /kubepods/pod1 ")
    assert folders(f"0::{path}\n", mount) == ["/sys/fs/cgroup"]


def test_blanks_in_a_mount_s_path_are_understood():
    assert folders("0::/a\n", V2_MOUNT.replace("/sys/fs/cgroup", "/my\\040groups")) == ["/my groups/a", "/my groups"]


def test_a_limit_leaves_what_is_not_used_and_what_can_be_reclaimed():
    assert group_room("1000\n", "700\n", "anon 1\ninactive_file 200\n", "inactive_file") == (500, 1000)
    assert group_room("1000", "1500", "", "inactive_file") == (0, 1000)


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n", "", "nonsense"])
def test_no_limit_is_no_bound(limit):
    assert group_room(limit, "700\n", "", "inactive_file") is None


@given(st.text(), st.text(), st.text())
def test_no_text_is_too_strange(cgroup, mountinfo, meminfo):
    assert all(isinstance(folder, PurePosixPath) for _, folder in group_folders(cgroup, mountinfo))
    assert available(meminfo) is None or available(meminfo) >= 0
    group_room(cgroup, mountinfo, meminfo, "inactive_file")


def machine(root: Path, *, meminfo: int, groups: dict[str, tuple[str, int, int]], cgroup: str) -> Path:
    """A file system with a machine's memory and its control groups: limit, use and inactive file pages of each."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {meminfo // 1000} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(V2_MOUNT)
    for name, (limit, usage, inactive) in groups.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text(str(usage))
        (folder / "memory.stat").write_text(f"file 0\ninactive_file {inactive}\n")
    return root


def test_the_tightest_of_nested_groups_and_the_machine_bounds(tmp_path):
    groups = {"pod": (str(8 * GB), 6 * GB, GB), "pod/box": (str(16 * GB), GB, 0)}
    root = machine(tmp_path / "a", meminfo=64 * GB, groups=groups, cgroup="0::/pod/box\n")
    assert host_room(root).size == 3 * GB
    assert host_room(root).bound == "the container's limit of 8.0 GB"
    root = machine(tmp_path / "b", meminfo=GB, groups=groups, cgroup="0::/pod/box\n")
    assert host_room(root).size == GB // 1000 * 1024
    assert host_room(root).bound == "the memory of this machine"


def test_a_place_that_tells_nothing_bounds_nothing(tmp_path):
    assert host_room(tmp_path).size >= 1 << 60


def test_this_machine_has_some_memory():
    assert host_room().size > 0


def test_something_is_kept_back_for_others():
    state = 10 * GB
    keep = kept_back(state)
    assert keep == (256 << 20) + GB
    assert slots_that_fit([state, state], state, 2 * state + keep) == 2
    assert slots_that_fit([state, state], state, 2 * state + keep - 1) == 1
    assert slots_that_fit([state, state], state, state + keep - 1) == 0


def test_memory_that_is_held_already_needs_no_room():
    assert slots_that_fit([0, 0], GB, 0) == 2
    assert slots_that_fit([0, GB], GB, 0) == 1
