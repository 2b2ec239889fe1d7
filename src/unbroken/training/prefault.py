"""Touching the arena before the first save, so that the first save is as fast as the tenth."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from unbroken.link.arena import Slot

_CHUNK = 4 << 20


class Prefault:
    """A thread that has the system give memory to slots.

    It has the training's own priority: where a training leaves no core idle, a thread that stood behind it would not
    be through when the first save comes, and that save would wait for every page. A GB takes about 0.6 seconds of one
    core, whenever that is.

    Args:
        slots: one after another; the one that is taken first comes first.
        enough: asked before each chunk of so many bytes whether the host still has it; False ends the work.
        then: called in the thread for each slot that is touched as a whole.
    """

    def __init__(
        self, slots: Sequence[Slot], enough: Callable[[int], bool], then: Callable[[Slot], None] = lambda _: None
    ) -> None:
        self._slots = list(slots)
        self._enough = enough
        self._then = then
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="unbroken-prefault", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether all is done, or given up, within ``seconds``."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        """End; a chunk under way takes milliseconds."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        for slot in self._slots:
            for at in range(0, slot.size, _CHUNK):
                if self._stop.is_set() or not self._touch(slot, at):
                    return
            self._then(slot)

    def _touch(self, slot: Slot, at: int) -> bool:
        try:
            if not self._enough(_CHUNK):
                return False
            slot.touch(at, _CHUNK)
        except (MemoryError, ValueError):  # the host is full, or the slot was closed: the save that needs it will say
            return False
        return True
