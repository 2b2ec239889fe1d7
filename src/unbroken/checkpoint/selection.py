"""Which tensors of a checkpoint leave it in an export, and by which names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from unbroken.checkpoint.manifest import Manifest, TensorRecord
from unbroken.checkpoint.tree import Tagged, TensorRef, decode_tree
from unbroken.errors import NotFoundError


@dataclass
class Selection:
    """Tensors of some objects, in the order of the state."""

    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    """By the name that each gets."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Further names of the same tensors (tied weights): alias to name."""
    values: int = 0
    """How many values there are beside the tensors: numbers, strings, flags."""

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(record.size for record in self.tensors.values())


def held_objects(manifest: Manifest) -> list[str]:
    """The names under which the program passed its objects, and ``rng``: of several ranks, as rank 0 has them."""
    return [str(name) for name in manifest.state_of(0)]


def demand_objects(manifest: Manifest, names: Sequence[str]) -> None:
    """Refuse names that the checkpoint does not hold.

    Raises:
        NotFoundError: names what it holds.
    """
    held = held_objects(manifest)
    for name in names:
        if name not in held:
            raise NotFoundError(
                f"the checkpoint of step {manifest.step} holds no {name!r}", kind="object-name",
                hint=f"It holds {', '.join(held)}: choose with --only, or take --all",
            )  # fmt: skip


def select(manifest: Manifest, objects: Sequence[str]) -> Selection:
    """Choose the tensors of objects.

    Names are the paths in the state, joined by ``/``; without the object's own name where there is but one object, so
    that a model's tensors are called as its ``state_dict`` calls them. Of what belongs to each rank alone it is
    rank 0's.

    Raises:
        NotFoundError: the checkpoint holds no object of that name.
    """
    demand_objects(manifest, objects)
    records = {record.name: record for record in manifest.tensors}
    state = manifest.state_of(0)
    given: dict[str, str] = {}
    chosen = Selection()
    for name in objects:
        path = () if len(objects) == 1 else (name,)
        for place, leaf in _leaves(decode_tree(state[name]), path):
            stored = _tensor_name(leaf)
            if stored is None:
                chosen.values += 1
                continue
            text = _unused("/".join(place) or name, chosen)
            if stored in given:
                chosen.aliases[text] = given[stored]
            else:
                given[stored] = text
                chosen.tensors[text] = records[stored]
    return chosen


def _tensor_name(leaf: Any) -> str | None:
    match leaf:
        case TensorRef(name=name):
            return name
        case Tagged(tag="ndarray", value=str(name)):
            return name
    return None


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, (*path, str(number)))
    else:
        yield path, value


def _unused(name: str, chosen: Selection) -> str:
    unique, number = name, 1
    while unique in chosen.tensors or unique in chosen.aliases or unique == "__metadata__":
        number += 1
        unique = f"{name}#{number}"
    return unique
