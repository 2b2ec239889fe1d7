"""What a checkpoint holds, by paths that do not depend on the layout in which it was written."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from unbroken.checkpoint import Manifest, TensorRecord, TensorRef, decode_tree, load_manifest, read_tensors
from unbroken.checkpoint.tree import tensor_names
from unbroken.journal import CheckpointRecord
from unbroken.store import Store


@dataclass(frozen=True)
class Content:
    """A checkpoint's tensors and values.

    A path begins with the name in the run's ``state``. What belongs to one of several ranks alone has the rank behind
    that: ``rng/rank3/torch``.
    """

    store: Store
    manifest: Manifest
    values: dict[str, Any]
    """Everything that is no tensor; containers that hold nothing, too."""
    tensors: dict[str, TensorRecord]
    """Whole, in however many slices they are stored."""
    trees: dict[str, Any]
    """As stored: by name what all ranks share, and by name and rank what is each one's own."""

    def read(self, path: str) -> memoryview:
        """The bytes of a tensor, verified.

        Raises:
            DamagedError: they disagree with their digests.
        """
        name = self.tensors[path].name
        return read_tensors(self.store, self.manifest, [name])[name]

    @property
    def own(self) -> set[str]:
        """The names of what belongs to each rank alone."""
        return {str(name) for local in self.manifest.locals for name in local}

    def without(self, names: Collection[str]) -> Content:
        """The same but for these names of the state."""
        values, tensors, trees = (
            {path: item for path, item in part.items() if path.partition("/")[0] not in names}
            for part in (self.values, self.tensors, self.trees)
        )
        return Content(self.store, self.manifest, values, tensors, trees)

    def below(self, prefix: str) -> Content:
        """What is at one path."""
        values, tensors, trees = (
            {path: item for path, item in part.items() if path == prefix or path.startswith(prefix + "/")}
            for part in (self.values, self.tensors, self.trees)
        )
        return Content(self.store, self.manifest, values, tensors, trees)


def content_of(store: Store, record: CheckpointRecord) -> Content:
    """What a checkpoint holds; no tensor is read yet.

    Raises:
        DamagedError: its manifest is not what was committed.
    """
    manifest = load_manifest(store, record)
    shared = manifest.state
    values = dict(_leaves(decode_tree(shared), ""))
    trees = {str(name): tree for name, tree in shared.items()}
    paths: dict[str, str] = {}
    for rank, local in enumerate(manifest.locals):
        for name, value in decode_tree(local).items():
            values.update(_leaves(value, f"{name}/rank{rank}"))
            trees[f"{name}/rank{rank}"] = local[name]
        paths |= {name: _own_path(name, rank) for name in tensor_names(local)}
    tensors = {paths.get(record.name, record.name): record for record in manifest.tensors}
    return Content(store, manifest, values, tensors, trees)


def _own_path(name: str, rank: int) -> str:
    """``rank3/rng/torch`` as ``rng/rank3/torch``."""
    group, slash, rest = name.removeprefix(f"rank{rank}/").partition("/")
    return f"{group}/rank{rank}{slash}{rest}"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Everything in a state that is no tensor, by path; containers that hold nothing are leaves too."""
    if isinstance(value, TensorRef):
        return
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}/{key}" if path else str(key))
    elif isinstance(value, list | tuple) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}/{index}" if path else str(index))
    else:
        yield path, value
