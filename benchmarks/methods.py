"""The ways of saving that are measured, by name: Unbroken's, and its peers where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from method import Place, Saving
from training_state import Training


class Nothing:
    """No saves at all: what the measurement makes of nothing is its error."""

    def __init__(self, place: Place, training: Training) -> None:
        pass

    def open(self, every: int) -> None:
        pass

    def boundary(self, step: int, *, due: bool) -> bool:  # noqa: ARG002
        return due

    def close(self) -> list[float]:
        return []

    def restore(self) -> dict[str, Any]:
        return {}


def _nothing() -> Callable[..., Saving]:
    return Nothing


def _unbroken() -> Callable[..., Saving]:
    from with_unbroken import Unbroken

    return Unbroken


def _torch_save() -> Callable[..., Saving]:
    from with_torch_save import TorchSave

    return TorchSave


def _dcp() -> Callable[..., Saving]:
    from with_dcp import Dcp

    return Dcp


def _s3torchconnector() -> Callable[..., Saving]:
    from with_s3torchconnector import S3Connector

    return S3Connector


def _dlrover() -> Callable[..., Saving]:
    from with_dlrover import DLRover

    return DLRover


def _resiliency_ext() -> Callable[..., Saving]:
    from with_resiliency_ext import ResiliencyExt

    return ResiliencyExt


@dataclass(frozen=True)
class Method:
    """How to make one, and where it can save to."""

    load: Callable[[], Callable[..., Saving]]
    stores: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""
    """The module of a peer, which may be missing."""

    @property
    def ours(self) -> bool:
        return self.load is _unbroken

    @property
    def missing(self) -> str:
        """Why it cannot be measured here, or ""."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return "not installed"
        return ""

    def make(self, place: Place, training: Training) -> Saving:
        return self.load()(place, training, **self.options)


METHODS = {
    "nothing": Method(_nothing, ("folder", "s3")),
    "unbroken": Method(_unbroken, ("folder", "s3")),
    "unbroken-eager": Method(_unbroken, ("folder", "s3"), {"overlap": False}),
    "naive": Method(_torch_save, ("folder", "s3")),
    "naive-tuned": Method(_torch_save, ("s3",), {"tuned": True}),
    "dcp": Method(_dcp, ("folder",), {"how": "save"}),
    "dcp-thread": Method(_dcp, ("folder",), {"how": "thread"}),
    "dcp-process": Method(_dcp, ("folder",), {"how": "process"}),
    "s3torchconnector": Method(_s3torchconnector, ("s3",), {"how": "save"}, "s3torchconnector"),
    "s3torchconnector-thread": Method(_s3torchconnector, ("s3",), {"how": "thread"}, "s3torchconnector"),
    "dlrover": Method(_dlrover, ("folder",), needs="dlrover"),
    "resiliency-ext": Method(_resiliency_ext, ("folder",), needs="nvidia_resiliency_ext"),
}
