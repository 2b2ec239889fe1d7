"""The values that the loop logs, kept until a checkpoint has made them durable."""

from __future__ import annotations

from typing import Any

import torch

from unbroken.checkpoint import Metrics
from unbroken.errors import ConfigError


class Logbook:
    """Logged values by name and step. The loop owns it; not thread-safe."""

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[int, Any]]] = {}

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Keep values for the step that will be complete as number ``step``; the last value of a step stands.

        Tensors are kept as they are and read later: reading one at once would make the loop wait for the GPU.

        Raises:
            ConfigError: a value is no single number; names it.
        """
        for name, given in values.items():
            value = _kept(name, given) if isinstance(given, torch.Tensor) else _number(name, given)
            points = self._values.setdefault(name, [])
            if points and points[-1][0] == step:
                points[-1] = (step, value)
            else:
                points.append((step, value))

    def until(self, step: int) -> Metrics:
        """Everything logged for steps up to ``step``, as numbers."""
        metrics: Metrics = {}
        for name, points in self._values.items():
            read = [(at, _number(name, value)) for at, value in points if at <= step]
            points[: len(read)] = read
            if read:
                metrics[name] = read
        return metrics

    def forget(self, step: int) -> None:
        """Drop what is durable: everything up to ``step``."""
        for name in list(self._values):
            self._values[name] = [point for point in self._values[name] if point[0] > step]


def _kept(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.numel() != 1:
        raise _not_a_number(name, tensor)
    return tensor.detach().clone()


def _number(name: str, value: Any) -> float:
    try:
        number = value.item() if hasattr(value, "item") else value
    except (RuntimeError, ValueError) as error:
        raise _not_a_number(name, value) from error
    if isinstance(number, bool):
        return int(number)
    if isinstance(number, int | float):
        return number
    raise _not_a_number(name, value)


def _not_a_number(name: str, value: Any) -> ConfigError:
    what = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
    return ConfigError(f"run.log({name}=...) was given {what}", kind="log", hint="Log single numbers")
