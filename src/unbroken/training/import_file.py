"""Reading a file of ``torch.save`` without running what may be in it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from unbroken.checkpoint import HostState, HostTensor
from unbroken.checkpoint.importing import demand_name
from unbroken.checkpoint.staged import check_state
from unbroken.errors import ConfigError
from unbroken.training.capture import capture, dtype_name
from unbroken.training.objects import StateObject
from unbroken.training.restore import bytes_of

_ARCHIVE = b"PK\x03\x04"
_PICKLE = b"\x80"
"""How files of torch.save begin: an archive, or up to version 1.5 a pickle."""


def torch_file_state(path: Path, name: str, key: str = "") -> HostState:
    """The state of step 0 whose object ``name`` is what a file of ``torch.save`` holds.

    Tensors are mapped where the file allows it, and read when they are written.

    Args:
        key: take this entry of the file, whose outermost value is a dictionary; "": take all of it.

    Raises:
        ConfigError: the file needs full unpickling, is no file of ``torch.save``, or holds what a checkpoint cannot.
    """
    demand_name(name)
    value = _entry(_load(path), key, path)
    captured = capture([StateObject(name, None, lambda: value, lambda _: None)])
    if not captured.tensors:
        raise ConfigError(f"{path} holds no tensors", kind="file")
    tensors = [
        HostTensor(tensor, dtype_name(held), tuple(held.shape), bytes_of(held.contiguous()))
        for tensor, held in captured.tensors.items()
    ]
    state = HostState(0, captured.tree, tensors, partial=True)
    check_state(state)
    return state


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(len(_ARCHIVE))
    try:
        if head != _ARCHIVE and head[:1] != _PICKLE:
            raise ValueError("it is neither an archive nor a pickle")
        # Files of the old kind cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=head == _ARCHIVE)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path} does not load without running code from it: {_first_line(error)}", kind="pickle",
            hint="Where you trust it, load it in Python and save its state alone: "
            "torch.save(model.state_dict(), 'weights.pt')",
        ) from error  # fmt: skip
    except Exception as error:  # torch's reader raises anything at all on bytes that torch.save did not write
        raise ConfigError(f"{path} is no file that torch can read ({_first_line(error)})", kind="file") from error


def _entry(value: Any, key: str, path: Path) -> Any:
    if not key:
        return value
    if not isinstance(value, dict) or key not in value:
        held = ", ".join(map(str, value)) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise ConfigError(f"{path} holds no {key!r} but {held}", kind="key", hint="Name one of these with --key")
    return value[key]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
