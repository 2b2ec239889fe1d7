"""Element types: torch's names, their sizes, and the names that safetensors has for them."""

from __future__ import annotations

from unbroken.errors import FormatError

# torch name -> (bytes an element, safetensors name or "" where that format has none)
_DTYPES = {
    "bool": (1, "BOOL"),
    "uint8": (1, "U8"),
    "int8": (1, "I8"),
    "int16": (2, "I16"),
    "uint16": (2, "U16"),
    "int32": (4, "I32"),
    "uint32": (4, "U32"),
    "int64": (8, "I64"),
    "uint64": (8, "U64"),
    "float16": (2, "F16"),
    "bfloat16": (2, "BF16"),
    "float32": (4, "F32"),
    "float64": (8, "F64"),
    "float8_e4m3fn": (1, "F8_E4M3"),
    "float8_e5m2": (1, "F8_E5M2"),
    "float8_e4m3fnuz": (1, ""),
    "float8_e5m2fnuz": (1, ""),
    "float8_e8m0fnu": (1, ""),
    "complex32": (4, ""),
    "complex64": (8, ""),
    "complex128": (16, ""),
}

KNOWN = frozenset(_DTYPES)


def item_size(dtype: str) -> int:
    """Bytes of one element.

    Raises:
        FormatError: the type is not in version 1 of the format.
    """
    try:
        return _DTYPES[dtype][0]
    except KeyError:
        raise FormatError(
            f"the element type {dtype!r} is not in version 1 of the format",
            kind="dtype",
            hint="Install a newer unbroken",
        ) from None


def safetensors_name(dtype: str) -> str:
    """The name in a safetensors header, or "" for a type that must be written there as bytes (U8)."""
    item_size(dtype)
    return _DTYPES[dtype][1]


_FROM_SAFETENSORS = {name: dtype for dtype, (_, name) in _DTYPES.items() if name} | {
    # Newer versions of safetensors than the one that packs are written for have names for these, too.
    "C64": "complex64",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


def from_safetensors(name: str) -> str:
    """torch's name of a type in a safetensors header, or "" for one that checkpoints do not hold."""
    return _FROM_SAFETENSORS.get(name, "")
