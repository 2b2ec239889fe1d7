"""How urgent the threads of the upload are for the scheduler: the cores belong to the training."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path


def lower_uploads(nice: int) -> None:
    """Put the calling thread, and threads that Python knows nothing of, ``nice`` (0 to 19) behind the main thread.

    The others are those of the storage library, which come to be in whichever thread uses it first. What a thread
    starts later inherits its value; the main thread, which starts the command, is left alone.
    """
    known = {thread.native_id for thread in threading.enumerate()}
    _set([threading.get_native_id(), *(task for task in _tasks() if task not in known)], _usual() + nice)
    _set_session(nice)


def raise_uploads() -> None:
    """Give every thread the main one's priority again.

    Needs a right that containers often lack; where it is refused, all stays as it is.
    """
    _set(_tasks(), _usual())
    _set_session(0)


def _usual() -> int:
    return os.getpriority(os.PRIO_PROCESS, os.getpid())


def _tasks() -> list[int]:
    """The threads of this process but the main one, by the system's ids."""
    try:
        return [number for task in Path("/proc/self/task").iterdir() if (number := int(task.name)) != os.getpid()]
    except OSError:
        return []  # no /proc here


def _set(threads: list[int], nice: int) -> None:
    for thread in threads:
        with contextlib.suppress(OSError):  # refused, or the thread is gone
            os.setpriority(os.PRIO_PROCESS, thread, min(19, nice))


def _set_session(nice: int) -> None:
    """The same for this process's session, if it is ours alone.

    Outside of containers Linux deals the cores out to sessions first (``sched_autogroup``), and to the threads within
    each by their own values: without this a trainer in another session would not notice that we stand behind.
    """
    if os.getsid(0) != os.getpid():
        return
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/proc/self/autogroup")
        if int(group.read_text().rsplit(maxsplit=1)[-1]) != nice:
            group.write_text(str(nice))
