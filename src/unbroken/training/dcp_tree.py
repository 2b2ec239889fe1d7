"""Names of torch.distributed.checkpoint and the state tree: one flattened, the other nested, by one rule both ways.

torch's planners take nested mappings apart, and lists that hold a tensor or a mapping; everything else is one value.
Its name is the way to it, joined by dots. What was put together again from such values comes apart into the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from unbroken.checkpoint import TensorRef
from unbroken.errors import ConfigError

Path: TypeAlias = tuple[str | int, ...]


def path_of(name: str, planner_data: Any) -> Path:
    """Where what torch calls ``name`` stands in the state; a planner that does not flatten leaves all at the top."""
    path = planner_data.get(name) if isinstance(planner_data, Mapping) else None
    return (name,) if path is None else tuple(path)


def tensor_name(path: Path) -> str:
    """What the tensor there is called in a checkpoint, as in those of ``Run``: ``model/layers.0.weight``."""
    return "/".join(map(str, path))


@dataclass(frozen=True)
class Leaf:
    """A tensor's name, or another value, and where it stands in the state."""

    path: Path
    value: Any

    @property
    def name(self) -> str:
        """As torch calls it: ``model.layers.0.weight``."""
        return ".".join(map(str, self.path))


def is_one_value(value: Any) -> bool:
    """Whether a planner that flattens would leave this whole. ``TensorRef`` stands for a tensor."""
    if isinstance(value, Mapping):
        return False
    if not isinstance(value, list):
        return True
    return not any(isinstance(item, TensorRef) or not is_one_value(item) for item in value)


def flattened(tree: Mapping[Any, Any]) -> Iterator[Leaf]:
    """What a decoded tree consists of, in order."""
    for key, value in tree.items():
        yield from _leaves((str(key),), value)


def _leaves(path: Path, value: Any) -> Iterator[Leaf]:
    if is_one_value(value):
        yield Leaf(path, value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves((*path, str(key)), item)
    else:
        for number, item in enumerate(value):
            yield from _leaves((*path, number), item)


def nested(leaves: Iterable[Leaf]) -> dict[str, Any]:
    """The tree of these leaves. Lists may have empty mappings in it, which are no leaves: for items that are missing,
    and so that none is taken for one value.

    Raises:
        ConfigError: one stands where another has its own parts.
    """
    root: dict[str, Any] = {}
    lists: list[list[Any]] = []
    for leaf in leaves:
        place: Any = root
        for key, following in zip(leaf.path, leaf.path[1:], strict=False):
            if not _holds(place, key):
                fresh: Any = [] if isinstance(following, int) else {}
                _set(place, key, fresh)
                if isinstance(fresh, list):
                    lists.append(fresh)
            place = place[key]
            _demand(leaf, isinstance(place, list if isinstance(following, int) else dict))
        _demand(leaf, not _holds(place, leaf.path[-1]))
        _set(place, leaf.path[-1], leaf.value)
    for each in reversed(lists):
        if is_one_value(each):
            each.append({})
    return root


def _demand(leaf: Leaf, fits: bool) -> None:
    if not fits:
        raise ConfigError(f"{leaf.name} and another value stand inside of each other", kind="state")


def _holds(place: Any, key: Any) -> bool:
    if isinstance(place, list):
        return key < len(place) and bool(place[key] != {})
    return bool(key in place)


def _set(place: Any, key: Any, value: Any) -> None:
    if isinstance(place, list):
        place.extend({} for _ in range(len(place), key + 1))
    place[key] = value
