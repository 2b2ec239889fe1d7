"""Train on spot instances as if they were never taken away.

The names below load when first used: importing ``unbroken`` alone must not import torch, because the
command does so too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unbroken.errors import (
    AccessError,
    ChildError,
    ConfigError,
    DamagedError,
    DeadlineError,
    FencedError,
    FormatError,
    Interrupted,
    MismatchError,
    NotFoundError,
    StoreError,
    UnbrokenError,
)
from unbroken.version import __version__

if TYPE_CHECKING:
    from unbroken import data, dcp
    from unbroken.checkpoint.retention import KeepBest, KeepEvery, KeepLast
    from unbroken.training.manager import CheckpointManager
    from unbroken.training.run import Run

_LAZY = {
    "CheckpointManager": "unbroken.training.manager",
    "KeepBest": "unbroken.checkpoint.retention",
    "KeepEvery": "unbroken.checkpoint.retention",
    "KeepLast": "unbroken.checkpoint.retention",
    "Run": "unbroken.training.run",
}
_LAZY_MODULES = ("data", "dcp")

__all__ = [
    "AccessError",
    "CheckpointManager",
    "ChildError",
    "ConfigError",
    "DamagedError",
    "DeadlineError",
    "FencedError",
    "FormatError",
    "Interrupted",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "MismatchError",
    "NotFoundError",
    "Run",
    "StoreError",
    "UnbrokenError",
    "__version__",
    "data",
    "dcp",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _LAZY_MODULES:
        return import_module(f"unbroken.{name}")
    raise AttributeError(f"module 'unbroken' has no attribute {name!r}")
