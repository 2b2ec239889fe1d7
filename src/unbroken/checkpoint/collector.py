"""Letting Python's cyclic garbage collector rest while a great many objects are made that hold no cycles.

It looks at young objects again and again as their number grows; decoding a thousand rank records would be four fifths
that.
"""

from __future__ import annotations

import gc
import threading


class _Rest:
    """Counts who is within: the collector works again when the last has left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._was_on = False

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0 and self._was_on:
                gc.enable()


collector_resting = _Rest()
"""A context in which no thread collects; afterwards it is as it was before the first came in. For moments of computing:
not to be held while the network is waited for."""
