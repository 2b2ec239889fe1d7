"""What may stand in ``Run(state={...})``, and how its state is read and put back."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from unbroken.errors import ConfigError, MismatchError
from unbroken.training.generators import load_generators, loaded_numpy, read_generators, seeded_generators
from unbroken.training.wrappers import bare

RNG = "rng"
"""The name under which the random number generators are kept."""


@dataclass(frozen=True)
class StateObject:
    """One named object of the state.

    Args:
        name: its key in ``state``.
        value: the object itself, without wrappers.
        read: gives its state: nested containers, scalars and tensors. Tensors may alias the live ones.
        load: puts such a state back.
        generator: whether it is a random number generator.
        per_rank: whether each rank has one of its own, so that its state travels with the rank.
        seeded: of a generator: what ``read`` would give had it been seeded with a number of 63 bits; changes nothing.
    """

    name: str
    value: object
    read: Callable[[], Any]
    load: Callable[[Any], None]
    generator: bool = False
    per_rank: bool = False
    seeded: Callable[[int], Any] | None = None


def state_objects(state: dict[str, object], per_rank: Collection[str] = ()) -> list[StateObject]:
    """Accept what the user passed, and add the random number generators.

    Args:
        per_rank: names of objects of which each rank has one of its own, besides generators and data loaders.

    Raises:
        ConfigError: a name that cannot be used, or an object whose state cannot be read; names it.
    """
    check_names(state)
    unknown = [name for name in per_rank if name not in state]
    if unknown:
        raise ConfigError(
            f"per_rank names {', '.join(map(repr, unknown))}, and the state holds {', '.join(state)}", kind="per-rank",
            hint="Name parts of state={...} that are another on each rank",
        )  # fmt: skip
    objects = []
    for name, value in state.items():
        item = adapt(name, value)
        if item is None:
            raise ConfigError(
                f"state[{name!r}] is a {_type_name(value)}, which has no state_dict() and load_state_dict()",
                kind="state", hint=_hint(value),
            )  # fmt: skip
        objects.append(replace(item, per_rank=item.per_rank or name in per_rank))
    return [*objects, random_generators()]


def check_names(state: dict[str, object]) -> None:
    """Refuse a state without parts, or with a part whose name cannot be used.

    Raises:
        ConfigError: names it.
    """
    if not state:
        raise ConfigError("the state is empty", kind="state", hint="Pass at least state={'model': model}")
    for name in state:
        if not isinstance(name, str) or not name or name == RNG or "/" in name or name.startswith("$"):
            raise ConfigError(
                f"{name!r} cannot name a part of the state", kind="state",
                hint=f"Use a word without '/', not beginning with '$', other than {RNG!r}",
            )  # fmt: skip


def random_generators() -> StateObject:
    """The global random number generators of Python, NumPy and torch, under the name :data:`RNG`."""
    return StateObject(
        RNG, None, read_generators, load_generators, generator=True, per_rank=True, seeded=seeded_generators
    )


def adapt(name: str, value: object) -> StateObject | None:
    """How to read and load an object's state in place; None for a value that has none."""
    value = bare(value)
    if isinstance(value, torch.Tensor):
        return StateObject(name, value, lambda: value, lambda saved: _load_tensor(name, value, saved))
    if (generator := _generator(name, value)) is not None:
        return generator
    read, load = getattr(value, "state_dict", None), getattr(value, "load_state_dict", None)
    if callable(read) and callable(load) and not isinstance(value, type):
        return StateObject(name, value, read, load, per_rank=isinstance(value, torch.utils.data.DataLoader))
    return None


def _generator(name: str, value: object) -> StateObject | None:
    """For a generator of the user's own, of torch, Python or NumPy."""

    def item(read: Callable[[], Any], load: Callable[[Any], None], seeded: Callable[[int], Any]) -> StateObject:
        return StateObject(name, value, read, load, generator=True, per_rank=True, seeded=seeded)

    if isinstance(value, torch.Generator):
        return item(
            value.get_state, lambda saved: _load_generator(value, saved),
            lambda seed: torch.Generator(value.device).manual_seed(seed).get_state(),
        )  # fmt: skip
    if isinstance(value, random.Random):
        return item(value.getstate, value.setstate, lambda seed: type(value)(seed).getstate())
    if (numpy := loaded_numpy()) is not None and isinstance(value, numpy.random.Generator):
        bits = value.bit_generator
        return item(
            lambda: bits.state, lambda saved: setattr(bits, "state", saved), lambda seed: type(bits)(seed).state
        )
    return None


def _hint(value: object) -> str:
    if isinstance(value, torch.utils.data.DataLoader):
        return "Use torchdata's StatefulDataLoader, or keep the order in a torch.Generator and pass that"
    if isinstance(value, type):
        return "Pass an object, not its class"
    return "Give it these two methods, or pass the generator or tensors that hold its state"


def _type_name(value: object) -> str:
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _load_tensor(name: str, tensor: torch.Tensor, saved: Any) -> None:
    if not isinstance(saved, torch.Tensor) or saved.shape != tensor.shape or saved.dtype != tensor.dtype:
        found = f"{saved.dtype} {tuple(saved.shape)}" if isinstance(saved, torch.Tensor) else type(saved).__name__
        raise MismatchError(
            f"the checkpoint holds {found} for {name}, and the program a {tensor.dtype} {tuple(tensor.shape)}",
            kind="tensor",
        )
    with torch.no_grad():
        tensor.copy_(saved)


def _load_generator(generator: torch.Generator, saved: Any) -> None:
    generator.set_state(saved)
