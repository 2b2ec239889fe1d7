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
zero survives.
"""

from __future__ import annotations

import base64
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unbroken.errors import ConfigError, FormatError

_SAFE_INT = (1 << 53) - 1


@dataclass(frozen=True)
class TensorRef:
    """A leaf of the tree: the tensor of this name in the manifest."""

    name: str


@dataclass(frozen=True)
class Tagged:
    """A leaf whose Python type belongs to torch or NumPy: ``tag`` is one of the last five of the table above."""

    tag: str
    value: Any


def encode_tree(value: Any, path: str = "state") -> Any:
    """Turn nested values into what JSON can hold.

    Args:
        value: scalars, containers, :class:`TensorRef` and :class:`Tagged` leaves.
        path: the name of the value in error messages.

    Raises:
        ConfigError: a value of a type that the format does not hold; names its path.
    """
    if value is None or (isinstance(value, bool | str) and type(value) in (bool, str)):
        return value
    encode = _ENCODERS.get(type(value))
    if encode is None:
        raise ConfigError(
            f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold",
            kind="state-type",
            hint="Checkpoints hold tensors, numbers, strings, bytes and containers of these, and never pickles: "
            "let the object's state_dict() return such values",
        )
    return encode(value, path)


def _encode_int(value: int, path: str) -> Any:  # noqa: ARG001 - one signature for all encoders
    return value if -_SAFE_INT <= value <= _SAFE_INT else {"$int": str(value)}


def _encode_float(value: float, path: str) -> Any:  # noqa: ARG001
    return value if math.isfinite(value) else {"$float": str(value)}


def _encode_list(value: list[Any], path: str) -> list[Any]:
    return [encode_tree(item, f"{path}[{i}]") for i, item in enumerate(value)]


def _encode_pairs(value: dict[Any, Any], path: str) -> list[Any]:
    return [
        [encode_tree(key, f"key {key!r} of {path}"), encode_tree(item, f"{path}[{key!r}]")]
        for key, item in value.items()
    ]


def _encode_dict(value: dict[Any, Any], path: str) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode_tree(item, f"{path}[{key!r}]") for key, item in value.items()}
    return {"$dict": _encode_pairs(value, path)}


def _encode_set(value: Any, path: str) -> list[Any]:
    return sorted(
        (encode_tree(item, f"item {item!r} of {path}") for item in value),
        key=lambda item: json.dumps(item, sort_keys=True),
    )


_ENCODERS: dict[type, Callable[[Any, str], Any]] = {
    int: _encode_int,
    float: _encode_float,
    complex: lambda value, path: {"$complex": [_encode_float(value.real, path), _encode_float(value.imag, path)]},
    bytes: lambda value, _: {"$bytes": base64.b64encode(value).decode("ascii")},
    list: _encode_list,
    tuple: lambda value, path: {"$tuple": _encode_list(list(value), path)},
    dict: _encode_dict,
    OrderedDict: lambda value, path: {"$ordered": _encode_pairs(value, path)},
    set: lambda value, path: {"$set": _encode_set(value, path)},
    frozenset: lambda value, path: {"$frozenset": _encode_set(value, path)},
    TensorRef: lambda value, _: {"$tensor": value.name},
    Tagged: lambda value, _: {f"${value.tag}": value.value},
}


def decode_tree(node: Any) -> Any:
    """Turn what :func:`encode_tree` made back into nested values; the inverse, exactly.

    Raises:
        FormatError: an unknown tag, or a tag around something that it cannot hold.
    """
    if isinstance(node, list):
        return [decode_tree(item) for item in node]
    if not isinstance(node, dict):
        return node
    tags = [key for key in node if key.startswith("$")]
    if not tags:
        return {key: decode_tree(item) for key, item in node.items()}
    if len(node) != 1 or tags[0] not in _DECODERS:
        raise FormatError(f"the state holds the unknown tag {tags[0]}", kind="tag", hint="Install a newer unbroken")
    try:
        return _DECODERS[tags[0]](node[tags[0]])
    except (TypeError, ValueError) as error:
        raise FormatError(f"the state holds a {tags[0]} that cannot be read ({error})", kind="tag") from error


def _decode_pairs(pairs: Any) -> list[tuple[Any, Any]]:
    return [(decode_tree(key), decode_tree(item)) for key, item in pairs]


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$tensor": lambda value: TensorRef(str(value)),
    "$tuple": lambda value: tuple(decode_tree(list(value))),
    "$dict": lambda value: dict(_decode_pairs(value)),
    "$ordered": lambda value: OrderedDict(_decode_pairs(value)),
    "$set": lambda value: set(decode_tree(list(value))),
    "$frozenset": lambda value: frozenset(decode_tree(list(value))),
    "$int": int,
    "$float": float,
    "$complex": lambda value: complex(*decode_tree(list(value))),
    "$bytes": lambda value: base64.b64decode(value, validate=True),
    "$size": lambda value: Tagged("size", list(value)),
    "$dtype": lambda value: Tagged("dtype", str(value)),
    "$device": lambda value: Tagged("device", str(value)),
    "$ndarray": lambda value: Tagged("ndarray", str(value)),
    "$scalar": lambda value: Tagged("scalar", [str(value[0]), value[1]]),
}


def tensor_names(node: Any) -> list[str]:
    """The names of all tensors in an encoded tree, each once, in order."""
    names: dict[str, None] = {}

    def visit(item: Any) -> None:
        if isinstance(item, list):
            for part in item:
                visit(part)
        elif isinstance(item, dict):
            if item.keys() in ({"$tensor"}, {"$ndarray"}):
                names[next(iter(item.values()))] = None
            else:
                for part in item.values():
                    visit(part)

    visit(node)
    return list(names)
