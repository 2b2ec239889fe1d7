"""The parts of verbs that need torch: loaded when they are used, and only then."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from unbroken.errors import ConfigError


def torch_part(module: str, why: str) -> Any:
    """A module of :mod:`unbroken.training`.

    Args:
        why: what cannot be done without torch, in words.

    Raises:
        ConfigError: torch is not installed.
    """
    try:
        import_module("torch")
    except ImportError as error:
        raise ConfigError(f"{why} needs torch ({error})", kind="torch", hint="pip install 'unbroken[torch]'") from error
    return import_module(f"unbroken.training.{module}")
