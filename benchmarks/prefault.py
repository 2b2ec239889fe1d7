"""Memory whose pages are there before anyone measures."""

from __future__ import annotations

import mmap

_MADV_POPULATE_WRITE = 23  # Linux 5.14; the mmap module has no name for it


def prefaulted(size: int) -> mmap.mmap:
    """Private memory of ``size`` bytes, every page of it touched.

    Raises:
        OSError: the machine has not so much.
    """
    memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    try:
        memory.madvise(_MADV_POPULATE_WRITE)
    except OSError:  # an older kernel
        memory.close()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=flags)
    return memory


def touch_memory(size: int) -> None:
    """Touch memory and free it: a virtual machine's host takes idle pages away, and whoever comes first pays.

    A machine that has not so much is measured as it is.
    """
    if size <= 0:
        return
    try:
        prefaulted(size).close()
    except OSError:
        return
