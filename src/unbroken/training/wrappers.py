"""What stands around a model and is no part of it: taken off, so that names are those of the bare model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from unbroken.errors import ConfigError

_PREFIXES = ("module.", "_orig_mod.")
"""What wrappers put before the names of a model's tensors."""


def bare(value: object) -> object:
    """The model inside of ``DistributedDataParallel`` and ``torch.compile``, in whatever order; else the value itself.

    Raises:
        ConfigError: it is FSDP's first version.
    """
    while True:
        if isinstance(value, torch.nn.parallel.DistributedDataParallel):
            value = value.module
        elif isinstance(value, _loaded("torch._dynamo.eval_frame", "OptimizedModule")):
            value = value._orig_mod
        else:
            break
    if isinstance(value, torch.nn.Module):
        _refuse_fsdp1(value)
    return value


def without_prefixes(saved: Mapping[Any, Any], live: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A module's state with the names that the bare model has: that of earlier versions was saved with its wrapper's.

    Args:
        saved: state by name.
        live: the bare model's, whose names decide whether there is anything to take off.
    """
    stripped = saved
    while stripped and stripped.keys() != live.keys():
        prefix = next((each for each in _PREFIXES if all(str(name).startswith(each) for name in stripped)), "")
        if not prefix:
            return saved
        stripped = type(saved)((str(name)[len(prefix) :], value) for name, value in stripped.items())  # type: ignore[call-arg]
    return stripped


def _refuse_fsdp1(model: torch.nn.Module) -> None:
    kind = _loaded("torch.distributed.fsdp", "FullyShardedDataParallel")
    if kind and any(isinstance(part, kind) for part in model.modules()):
        raise ConfigError(
            "the model is wrapped in FullyShardedDataParallel, whose tensors do not say what they are parts of",
            kind="fsdp1", hint="Use torch.distributed.fsdp.fully_shard(model) in its place",
        )  # fmt: skip


def _loaded(module: str, name: str) -> Any:
    """A class of a module that takes long to import: nothing is an instance of it before somebody has done so."""
    return getattr(sys.modules.get(module), name, ())
