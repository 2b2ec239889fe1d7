"""The head of a safetensors file: 8 bytes of length, little-endian, and a JSON object with each tensor's place."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from unbroken.errors import DamagedError

ALIGNMENT = 64
"""Bytes of which a header's length is a multiple, at the least."""
METADATA = "__metadata__"
"""Means something else than a tensor in a header."""


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor as a header names it."""

    name: str
    dtype: str
    """In the words of safetensors: ``F32``."""
    shape: list[int]
    length: int
    """Bytes."""


def encode_header(
    entries: Iterable[HeaderEntry], metadata: Mapping[str, str] | None = None, *, multiple_of: int = ALIGNMENT
) -> bytes:
    """The bytes before the first tensor, when the tensors follow in this order without gaps.

    Their number is a multiple of ``multiple_of``, a power of two from 64: tensors sorted by the width of their
    elements, the widest first, are aligned.
    """
    fields: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    at = 0
    for entry in entries:
        fields[entry.name] = {
            "dtype": entry.dtype, "shape": entry.shape, "data_offsets": [at, at + entry.length],
        }  # fmt: skip
        at += entry.length
    text = json.dumps(fields, separators=(",", ":")).encode()
    padding = -(8 + len(text)) % multiple_of
    return struct.pack("<Q", len(text) + padding) + text + b" " * padding


@dataclass(frozen=True)
class Header:
    """What a header says. ``starts`` gives each tensor's first byte in the file."""

    entries: list[HeaderEntry]
    starts: list[int]
    metadata: dict[str, str]


def decode_header(data: memoryview, source: str) -> Header:
    """Read the header of a whole file.

    Args:
        data: the file.
        source: its name, for errors.

    Raises:
        DamagedError: the bytes are no safetensors file, or the file ends early.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        fields = json.loads(bytes(data[8 : 8 + length])) if 8 + length <= len(data) else None
        if not isinstance(fields, dict):
            raise ValueError("it ends within the header")
        metadata = {str(key): str(value) for key, value in fields.pop(METADATA, {}).items()}
        found = [_decode_entry(name, field, 8 + length, len(data)) for name, field in fields.items()]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{source} is no sound safetensors file ({error})", kind="safetensors") from error
    return Header([entry for entry, _ in found], [start for _, start in found], metadata)


def _decode_entry(name: str, field: dict[str, Any], base: int, size: int) -> tuple[HeaderEntry, int]:
    begin, end = map(int, field["data_offsets"])
    shape = [int(length) for length in field["shape"]]
    if not 0 <= begin <= end <= size - base or min(shape, default=0) < 0:
        raise ValueError(f"{name} is at bytes {begin}-{end} of {size - base}")
    return HeaderEntry(name, str(field["dtype"]), shape, end - begin), base + begin
