"""The limits that the system sets to a process."""

from __future__ import annotations

import resource

from unbroken.doctor.finding import Finding, note, sound, warning
from unbroken.doctor.place import Place
from unbroken.size import size_text

_FILES = 4096
"""Open files: DataLoader workers hold one for each tensor on its way, and each rank a socket for each other."""


def check_limits(place: Place) -> list[Finding]:
    """Open files (``ulimit -n``) and locked memory (``ulimit -l``)."""
    return [
        judged_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        judged_locked(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], gang=place.nodes > 1),
    ]


def judged_files(soft: int, hard: int) -> Finding:
    """What the limits of open files mean; -1 is no limit."""
    if soft == resource.RLIM_INFINITY or soft >= _FILES:
        return sound("any number of files may be open" if soft < 0 else f"{soft} files may be open at a time")
    why = "DataLoader workers and many ranks end with: Too many open files"
    raised = f"Raise it where the training starts: ulimit -n {hard if 0 < hard < 65536 else 65536}"
    return warning(f"only {soft} files may be open at a time", why, raised)


def judged_locked(soft: int, *, gang: bool) -> Finding:
    """What the limit of locked memory (bytes; -1 is none) means; only fast networks between nodes ask for more."""
    if soft == resource.RLIM_INFINITY:
        return sound("any amount of memory may be locked")
    text = f"{size_text(soft)} of memory may be locked"
    if not gang:
        return sound(text)
    why = "InfiniBand and EFA lock the memory that they send from; over plain TCP nothing is lost"
    return note(text, why, "Allow it where the network needs it: ulimit -l unlimited, or the capability IPC_LOCK")
