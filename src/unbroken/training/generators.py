"""The global random number generators: their state, and the state of ones that are new but determined."""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

import torch

from unbroken.errors import MismatchError

_WORD = (1 << 32) - 1


def seed_of(run: str, step: int, rank: int, name: str) -> int:
    """The seed, of 63 bits, of a generator of a rank that the checkpoint knows nothing of."""
    digest = hashlib.sha256(f"{run}/{step}/{rank}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def read_generators() -> dict[str, Any]:
    """The state of the generators of Python, torch, and of NumPy and CUDA where they are in use."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if (numpy := loaded_numpy()) is not None:
        state["numpy"] = numpy.random.get_state(legacy=True)
    if _has_cuda():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def seeded_generators(seed: int) -> dict[str, Any]:
    """What :func:`read_generators` would give had they all been seeded with ``seed``; changes none of them."""
    state: dict[str, Any] = {"python": random.Random(seed).getstate(), "torch": _seeded("cpu", seed)}
    if (numpy := loaded_numpy()) is not None:
        state["numpy"] = numpy.random.RandomState([seed & _WORD, seed >> 32]).get_state(legacy=True)
    if _has_cuda():
        state["cuda"] = [_seeded(f"cuda:{device}", seed) for device in range(torch.cuda.device_count())]
    return state


def load_generators(saved: Any) -> None:
    """Put a state that :func:`read_generators` gave back.

    Raises:
        MismatchError: it is of another number of CUDA devices.
    """
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


def fits_devices(saved: Any) -> bool:
    """Whether a state of the global generators is of as many CUDA devices as there are here, or of none."""
    return not isinstance(saved, dict) or "cuda" not in saved or len(saved["cuda"]) == torch.cuda.device_count()


def loaded_numpy() -> Any:
    """NumPy, if the program has imported it; nothing can have used its generators otherwise."""
    return sys.modules.get("numpy")


def _has_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def _seeded(device: str, seed: int) -> torch.Tensor:
    return torch.Generator(device).manual_seed(seed).get_state()
