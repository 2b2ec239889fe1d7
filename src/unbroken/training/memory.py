"""How much host memory may still be taken: what the machine has, and what the container's limits leave of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unbroken.size import size_text

KEPT_BACK = 256 << 20
"""Bytes that staging leaves to others, besides a tenth of the state."""
_UNLIMITED = 1 << 60
"""Version 1 control groups write a limit near 2^63 where there is none."""


@dataclass(frozen=True)
class Room:
    """Memory to be had: ``size`` bytes, and what sets that bound, for people."""

    size: int
    bound: str


@dataclass(frozen=True)
class _Controller:
    """A version of control groups: where it tells of memory."""

    limit: str
    usage: str
    reclaimable: str


_V1 = _Controller("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Controller("memory.max", "memory.current", "inactive_file")


def host_room(root: Path = Path("/")) -> Room:
    """What may be taken now without anybody being killed for it.

    Args:
        root: of the file system; for tests.
    """
    rooms = [
        room
        for controller, folder in group_folders(_text(root / "proc/self/cgroup"), _text(root / "proc/self/mountinfo"))
        if (room := _group_room(controller, root / folder.relative_to("/"))) is not None
    ]
    free = available(_text(root / "proc/meminfo"))
    if free is not None:
        rooms.append(Room(free, "the memory of this machine"))
    return min(rooms, key=lambda room: room.size, default=Room(_UNLIMITED, "nothing known"))


def slots_that_fit(missing: Sequence[int], state: int, room: int) -> int:
    """How many slots may be made: as many as the room allows with something kept back for others.

    Args:
        missing: bytes of memory that each slot still has to take.
        state: bytes of the state.
        room: bytes that may be taken.
    """
    for count in range(len(missing), 0, -1):
        wanted = sum(missing[:count])
        if wanted == 0 or wanted + kept_back(state) <= room:
            return count
    return 0


def kept_back(state: int) -> int:
    """Bytes that staging a state of ``state`` bytes leaves to others."""
    return KEPT_BACK + state // 10


def available(meminfo: str) -> int | None:
    """Bytes that ``/proc/meminfo`` says can be had without swapping; None if it does not say."""
    fields = _fields(meminfo)
    found = fields.get("MemAvailable:", fields.get("MemFree:"))
    return found * 1024 if found is not None else None


def group_folders(cgroup: str, mountinfo: str) -> Iterator[tuple[_Controller, PurePosixPath]]:
    """The folders of the control groups that may limit this process's memory, innermost first.

    Args:
        cgroup: text of ``/proc/self/cgroup``.
        mountinfo: text of ``/proc/self/mountinfo``.
    """
    mounts = list(_mounts(mountinfo))
    for line in cgroup.splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        controller = _V2 if number == "0" and not names else _V1 if "memory" in names.split(",") else None
        if controller is None or not path:
            continue
        for kind, inside, mounted in mounts:
            if kind is controller:
                yield from ((kind, folder) for folder in _upwards(PurePosixPath(path), inside, mounted))


def group_room(limit: str, usage: str, stat: str, reclaimable: str) -> tuple[int, int] | None:
    """Bytes that a control group leaves, and its limit; None where it has no limit.

    Args:
        limit, usage, stat: the texts of its files.
        reclaimable: the field of ``stat`` with what the kernel takes back at need: pages of files not used lately.
    """
    with contextlib.suppress(ValueError):
        most, used = int(limit), int(usage)
        if most < _UNLIMITED:
            return max(0, most - used + _fields(stat).get(reclaimable, 0)), most
    return None


def _group_room(controller: _Controller, folder: Path) -> Room | None:
    found = group_room(
        _text(folder / controller.limit), _text(folder / controller.usage), _text(folder / "memory.stat"),
        controller.reclaimable,
    )  # fmt: skip
    return Room(found[0], f"the container's limit of {size_text(found[1])}") if found is not None else None


def _mounts(mountinfo: str) -> Iterator[tuple[_Controller, PurePosixPath, PurePosixPath]]:
    """Each mounted hierarchy that tells of memory: which kind, the group at its root, and where it is mounted."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        inside, mounted = (PurePosixPath(_unescape(text)) for text in fields[3:5])
        if kinds[0] == "cgroup2":
            yield _V2, inside, mounted
        elif kinds[0] == "cgroup" and "memory" in kinds[2].split(","):
            yield _V1, inside, mounted


def _upwards(path: PurePosixPath, inside: PurePosixPath, mounted: PurePosixPath) -> Iterator[PurePosixPath]:
    """From the group at ``path`` to the outermost one that is mounted here."""
    try:
        below = path.relative_to(inside)
    except ValueError:  # of another name space: all that can be seen is what is mounted
        below = PurePosixPath()
    if ".." in below.parts:
        below = PurePosixPath()
    yield mounted / below
    if below.parts:
        yield from (mounted / parent for parent in below.parents)


def _unescape(text: str) -> str:
    """mountinfo writes blanks and the like in octal."""
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _fields(text: str) -> dict[str, int]:
    """Lines of a word and a number."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
