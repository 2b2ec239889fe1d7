"""Reading the tensors of a checkpoint one after another, verified, without holding all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unbroken.checkpoint.manifest import Manifest
from unbroken.checkpoint.reader import read_tensors
from unbroken.store import Store

_AHEAD = 256 << 20
"""Bytes that are read at once: many small tensors need few round trips; a larger tensor is read alone."""


class TensorStream:
    """Tensors in a known order; those that come next are read together with the one that is asked for.

    Args:
        store: of the run.
        manifest: of the checkpoint.
        names: the order in which tensors will be taken.
        ahead: bytes to hold at most, unless one tensor is larger.
    """

    def __init__(self, store: Store, manifest: Manifest, names: Sequence[str], *, ahead: int = _AHEAD) -> None:
        self._store = store
        self._manifest = manifest
        self._sizes = {record.name: record.size for record in manifest.tensors}
        self._names = list(names)
        self._next = 0
        self._ahead = ahead
        self._ready: dict[str, memoryview] = {}

    def take(self, name: str) -> memoryview:
        """The bytes of a tensor; the caller has them alone.

        Raises:
            DamagedError: a pack is missing, ends early, or disagrees with its digests.
        """
        if name not in self._ready:
            self._ready = read_tensors(self._store, self._manifest, self._group(name))
        return self._ready.pop(name)

    def _group(self, name: str) -> list[str]:
        try:
            start = self._names.index(name, self._next)
        except ValueError:  # taken before its turn, or a second time
            return [name]
        group = list(self._fitting(start))
        self._next = start + len(group)
        return group

    def _fitting(self, start: int) -> Iterator[str]:
        room = self._ahead
        for place, name in enumerate(self._names[start:]):
            room -= self._sizes[name]
            if room < 0 and place > 0:
                return
            yield name
