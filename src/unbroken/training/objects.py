"""What may stand in ``Run(state={...})``, and how its state is read and put back."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from unbroken.errors import ConfigError, MismatchError

RNG = "rng"
"""The name under which the random number generators are kept."""


@dataclass(frozen=True)
class StateObject:
    """One named object of the state.

    Args:
        name: its key in ``state``.
        value: the object itself.
        read: gives its state: nested containers, scalars and tensors. Tensors may alias the live ones.
        load: puts such a state back.
        generator: whether it is a random number generator.
    """

    name: str
    value: object
    read: Callable[[], Any]
    load: Callable[[Any], None]
    generator: bool = False


def state_objects(state: dict[str, object]) -> list[StateObject]:
    """Accept what the user passed, and add the random number generators.

    Raises:
        ConfigError: a name that cannot be used, or an object whose state cannot be read; names it.
    """
    check_names(state)
    objects = []
    for name, value in state.items():
        item = adapt(name, value)
        if item is None:
            raise ConfigError(
                f"state[{name!r}] is a {_type_name(value)}, which has no state_dict() and load_state_dict()",
                kind="state", hint=_hint(value),
            )  # fmt: skip
        objects.append(item)
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
    return StateObject(RNG, None, _read_rng, _load_rng, generator=True)


def adapt(name: str, value: object) -> StateObject | None:
    """How to read and load an object's state in place; None for a value that has none."""
    if isinstance(value, torch.Tensor):
        return StateObject(name, value, lambda: value, lambda saved: _load_tensor(name, value, saved))
    if isinstance(value, torch.Generator):
        return StateObject(name, value, value.get_state, lambda saved: _load_generator(value, saved), generator=True)
    if isinstance(value, random.Random):
        return StateObject(name, value, value.getstate, value.setstate, generator=True)
    if (numpy := _numpy()) is not None and isinstance(value, numpy.random.Generator):
        bits = value.bit_generator
        return StateObject(name, value, lambda: bits.state, lambda saved: setattr(bits, "state", saved), generator=True)
    read, load = getattr(value, "state_dict", None), getattr(value, "load_state_dict", None)
    if callable(read) and callable(load) and not isinstance(value, type):
        return StateObject(name, value, read, load)
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


def _numpy() -> Any:
    """NumPy, if the program has imported it; nothing can have used its generators otherwise."""
    return sys.modules.get("numpy")


def _read_rng() -> dict[str, Any]:
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if (numpy := _numpy()) is not None:
        state["numpy"] = numpy.random.get_state(legacy=True)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _load_rng(saved: Any) -> None:
    random.setstate(saved["python"])
    torch.set_rng_state(saved["torch"])
    if "numpy" in saved:
        import numpy

        numpy.random.set_state(saved["numpy"])
    if "cuda" in saved:
        if len(saved["cuda"]) != torch.cuda.device_count():
            raise MismatchError(
                f"the checkpoint holds the generators of {len(saved['cuda'])} CUDA devices, and this machine shows "
                f"{torch.cuda.device_count()}",
                kind="cuda-devices",
                hint="Resume on as many devices, or set CUDA_VISIBLE_DEVICES",
            )
        torch.cuda.set_rng_state_all(saved["cuda"])
