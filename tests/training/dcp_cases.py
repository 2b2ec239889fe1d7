"""What the tests of ``unbroken.dcp`` have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException


def cause(error: CheckpointException, rank: int = 0) -> BaseException:
    """What went wrong on a rank."""
    return error.failures[rank][0]


def same(here: Any, there: Any) -> bool:
    """To the bit, types included."""
    if isinstance(here, torch.Tensor) and isinstance(there, torch.Tensor):
        if (here.dtype, here.shape) != (there.dtype, there.shape):
            return False
        return bits(here) == bits(there)
    if type(here) is not type(there):
        return False
    if isinstance(here, dict):
        return here.keys() == there.keys() and all(same(here[key], there[key]) for key in here)
    if isinstance(here, list | tuple) and not isinstance(here, torch.Size):
        return len(here) == len(there) and all(map(same, here, there))
    return bool(here == there)


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def emptied(value: Any) -> Any:
    """A state of the same structure with nothing of the values."""
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return {key: emptied(item) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, torch.Tensor | dict | list) for item in value):
        return [emptied(item) for item in value]
    return "not loaded"


def everything() -> dict[str, Any]:
    """Values of every kind that a checkpoint holds."""
    torch.manual_seed(11)
    return {
        "model": {"weight": torch.randn(5, 3), "half": torch.randn(4).bfloat16(), "empty": torch.zeros(0, 4)},
        "kinds": {
            "fp8": torch.randn(7).to(torch.float8_e4m3fn),
            "bool": torch.tensor([True, False, True]),
            "complex": torch.randn(3, dtype=torch.complex64),
            "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
            "scalar": torch.tensor(2.5, dtype=torch.float64),
            "transposed": torch.randn(4, 6).t(),
            "view": torch.arange(20)[3:9:2],
            "uint16": torch.arange(5).to(torch.uint16),
        },
        "nested": {"list": [torch.ones(2), {"deep": [torch.zeros(3), 4]}], "tuple": (1, (torch.arange(3), "x"))},
        "values": {
            "int": -7, "big": 1 << 70, "float": 0.1, "inf": float("inf"), "text": "ü", "none": None, "flag": True,
            "bytes": b"\x00\xff", "size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu"),
            "numbers": [1, 2.5, "three"], "set": {1, 2}, "complex": 1j, "empty": [],
        },
        "flat": 3,
    }  # fmt: skip
