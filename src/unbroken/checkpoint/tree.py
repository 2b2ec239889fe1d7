"""The state tree: nested Python values as JSON with tagged types, and names in the place of tensors.

JSON's own types stand for themselves where they can: ``None``, ``bool``, ``str``, finite ``float``, ``int`` within
53 bits, ``list``, and ``dict`` with string keys none of which begins with ``$``. Everything else is an object with
exactly one key, and that begins with ``$``:

=============== ==========================================================
``$tensor``     name of a tensor in the manifest
``$tuple``      list of items
``$dict``       list of [key, value] pairs, in order
``$ordered``    the same, of an ``OrderedDict``
``$set``        list of items, sorted by their JSON text
``$frozenset``  the same
``$int``        decimal digits, of an integer beyond 53 bits
``$float``      ``nan``, ``inf``, ``-inf``
``$complex``    [real, imaginary]
``$bytes``      base64
``$size``       list of ints: ``torch.Size``
``$dtype``      torch's name of an element type
``$device``     text of a ``torch.device``
``$ndarray``    name of a tensor in the manifest: a NumPy array
``$scalar``     [NumPy's name of the type, item]: a NumPy scalar
=============== ==========================================================

Floats are written with the shortest digits that read back to the same 64 bits: a round trip is exact, and the sign of
zero survives. (Sign and payload of a NaN outside of tensors do not.)
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from unbroken.errors import ConfigError, FormatError

_SAFE_INT = (1 << 53) - 1
_MAX_DEPTH = 100
"""Levels of JSON: what is deeper would be written and could then not be read by programs with a small stack."""
_LIBRARY_TAGS = frozenset({"size", "dtype", "device", "ndarray", "scalar"})


@dataclass(frozen=True)
class TensorRef:
    """A leaf of the tree: the tensor of this name in the manifest."""

    name: str


@dataclass(frozen=True)
class Tagged:
    """A leaf whose Python type belongs to torch or NumPy: ``tag`` is one of the last five of the table above.

    ``value`` is what the table says; the item of a ``scalar`` is a plain Python number.
    """

    tag: str
    value: Any


def encode_tree(value: Any, path: str = "state") -> Any:
    """Turn nested values into what JSON can hold.

    Args:
        value: scalars, containers, :class:`TensorRef` and :class:`Tagged` leaves.
        path: the name of the value in error messages.

    Raises:
        ConfigError: a value that the format does not hold; names its path.
    """
    try:
        encoded = _encode(value, path)
    except RecursionError:
        raise _too_deep(path) from None
    if _depth(encoded) > _MAX_DEPTH:
        raise _too_deep(path)
    return encoded


def _encode(value: Any, path: str) -> Any:
    encode = _ENCODERS.get(type(value))
    if encode is None:
        raise ConfigError(
            f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold",
            kind="state-type",
            hint="Checkpoints hold tensors, numbers, strings, bytes and containers of these, and never pickles: "
            "let the object's state_dict() return such values",
        )
    return encode(value, path)


def _too_deep(path: str) -> ConfigError:
    return ConfigError(
        f"{path} is nested more than about {_MAX_DEPTH} levels deep, or contains itself", kind="state-depth"
    )


def _depth(encoded: Any) -> int:
    level, depth = [encoded], 0
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth


def _same(value: Any, _: str) -> Any:
    return value


def _encode_str(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{path} is a string that is no Unicode text ({error.reason})", kind="state-text") from error
    return value


def _encode_int(value: int, path: str) -> Any:
    if -_SAFE_INT <= value <= _SAFE_INT:
        return value
    try:
        return {"$int": str(value)}
    except ValueError as error:  # Python refuses to write so many digits
        raise ConfigError(f"{path} is an integer of {value.bit_length()} bits", kind="state-int") from error


def _encode_float(value: float, _: str) -> Any:
    return value if math.isfinite(value) else {"$float": str(value)}


def _encode_list(value: Iterable[Any], path: str) -> list[Any]:
    return [_encode(item, f"{path}[{i}]") for i, item in enumerate(value)]


def _encode_pairs(value: dict[Any, Any], path: str) -> list[Any]:
    return [[_encode(key, f"key {key!r} of {path}"), _encode(item, f"{path}[{key!r}]")] for key, item in value.items()]


def _encode_dict(value: dict[Any, Any], path: str) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {
            _encode_str(key, f"key {key!r} of {path}"): _encode(item, f"{path}[{key!r}]") for key, item in value.items()
        }
    return {"$dict": _encode_pairs(value, path)}


def _encode_set(value: Iterable[Any], path: str) -> list[Any]:
    encoded = [_encode(item, f"item {item!r} of {path}") for item in value]
    return sorted(encoded, key=lambda item: json.dumps(item, sort_keys=True))


def _encode_tagged(value: Tagged, path: str) -> Any:
    if value.tag not in _LIBRARY_TAGS:
        raise ConfigError(f"{path} has the tag {value.tag!r}, which the format does not know", kind="state-type")
    match value.tag, value.value:
        case "scalar", [kind, item]:
            return {"$scalar": [kind, _encode(item, path)]}
        case "size", lengths:
            return {"$size": list(lengths)}
    return {f"${value.tag}": _encode_str(value.value, path)}


_ENCODERS: dict[type, Callable[[Any, str], Any]] = {
    type(None): _same,
    bool: _same,
    str: _encode_str,
    int: _encode_int,
    float: _encode_float,
    complex: lambda value, path: {"$complex": [_encode_float(value.real, path), _encode_float(value.imag, path)]},
    bytes: lambda value, _: {"$bytes": base64.b64encode(value).decode("ascii")},
    list: _encode_list,
    tuple: lambda value, path: {"$tuple": _encode_list(value, path)},
    dict: _encode_dict,
    OrderedDict: lambda value, path: {"$ordered": _encode_pairs(value, path)},
    set: lambda value, path: {"$set": _encode_set(value, path)},
    frozenset: lambda value, path: {"$frozenset": _encode_set(value, path)},
    TensorRef: lambda value, path: {"$tensor": _encode_str(value.name, path)},
    Tagged: _encode_tagged,
}


def decode_tree(node: Any) -> Any:
    """Turn what :func:`encode_tree` made back into nested values; the inverse, exactly.

    Raises:
        FormatError: an unknown tag, or a tag around something that it cannot hold.
    """
    try:
        return _decode(node)
    except RecursionError:
        raise FormatError("the state is nested too deeply to be read", kind="state-depth") from None


def _decode(node: Any) -> Any:
    if isinstance(node, list):
        return [_decode(item) for item in node]
    if not isinstance(node, dict):
        return node
    tags = [key for key in node if key.startswith("$")]
    if not tags:
        return {key: _decode(item) for key, item in node.items()}
    if len(node) != 1 or tags[0] not in _DECODERS:
        raise FormatError(f"the state holds the unknown tag {tags[0]}", kind="tag", hint="Install a newer unbroken")
    try:
        return _DECODERS[tags[0]](node[tags[0]])
    except (TypeError, ValueError) as error:
        raise FormatError(f"the state holds a {tags[0]} that cannot be read ({error})", kind="tag") from error


def _items(value: Any) -> list[Any]:
    return [_decode(item) for item in _typed(value, list)]


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    return [(_decode(key), _decode(item)) for key, item in _typed(value, list)]


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _decode_int(value: Any) -> int:
    if not re.fullmatch(r"-?[0-9]+", _typed(value, str)):
        raise ValueError("no decimal digits")
    return int(value)


def _decode_float(value: Any) -> float:
    if value not in ("nan", "inf", "-inf"):
        raise ValueError("neither nan nor inf nor -inf")
    return float(value)


def _decode_complex(value: Any) -> complex:
    real, imaginary = _items(value)
    return complex(_typed(real, float), _typed(imaginary, float))


def _decode_size(value: Any) -> Tagged:
    return Tagged("size", [_typed(length, int) for length in _typed(value, list)])


def _decode_scalar(value: Any) -> Tagged:
    kind, item = _items(value)
    if type(item) not in (bool, int, float):
        raise TypeError(f"a {type(item).__name__} in the place of a number")
    return Tagged("scalar", [_typed(kind, str), item])


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$tensor": lambda value: TensorRef(_typed(value, str)),
    "$tuple": lambda value: tuple(_items(value)),
    "$dict": lambda value: dict(_pairs(value)),
    "$ordered": lambda value: OrderedDict(_pairs(value)),
    "$set": lambda value: set(_items(value)),
    "$frozenset": lambda value: frozenset(_items(value)),
    "$int": _decode_int,
    "$float": _decode_float,
    "$complex": _decode_complex,
    "$bytes": lambda value: base64.b64decode(_typed(value, str), validate=True),
    "$size": _decode_size,
    "$dtype": lambda value: Tagged("dtype", _typed(value, str)),
    "$device": lambda value: Tagged("device", _typed(value, str)),
    "$ndarray": lambda value: Tagged("ndarray", _typed(value, str)),
    "$scalar": _decode_scalar,
}


def tensor_names(node: Any) -> list[str]:
    """The names of all tensors in an encoded tree, each once, in order."""
    names: dict[str, None] = {}
    pending = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(reversed(item))
        elif isinstance(item, dict):
            name = item.get("$tensor", item.get("$ndarray"))
            if isinstance(name, str):
                names[name] = None
            else:
                pending.extend(reversed(item.values()))
    return list(names)
