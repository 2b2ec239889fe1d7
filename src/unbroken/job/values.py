"""The kinds of values that a job file has, each with the form that an editor is told."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationInfo, WithJsonSchema

from unbroken.checkpoint.retention_text import parse_keep
from unbroken.clock import parse_duration, parse_time
from unbroken.errors import ConfigError
from unbroken.every import parse_every
from unbroken.store.uri import parse_uri

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?)B?\s*")
_FACTORS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_FACTORS |= {f"{letter}i": 1024**power for power, letter in enumerate("KMGT", 1)}


IN_BASE_UNITS = {"units": "base"}
"""Context of a validation whose durations are seconds and sizes bytes; people must write a unit."""


def parse_size(text: str) -> int:
    """Read ``64GiB``, ``64Gi``, ``1.5TB`` as bytes: ``Gi`` counts in 1024, ``G`` in 1000.

    Raises:
        ConfigError: it is no size, has no unit, or is not positive.
    """
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _FACTORS[match[2]]) if match else 0
    if size <= 0:
        raise ConfigError(
            f"{text!r} is not a size", kind="size", hint="Write a number and a unit, such as 64GiB or 500MB"
        )
    return size


def _cadence(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("write a number of steps, a duration such as 10min, or auto")
    parse_every(value)
    return value.strip()


def _keep(value: str) -> str:
    parse_keep(value)
    return value.strip()


def _seconds(value: Any, info: ValidationInfo) -> Any:
    if info.context == IN_BASE_UNITS:
        return value
    if not isinstance(value, str):
        raise ConfigError(
            f"{value!r} is not a duration with its unit", kind="duration", hint="Write it as 2min, 100s or 1h30min"
        )
    return parse_duration(value)


def _size(value: Any, info: ValidationInfo) -> Any:
    if info.context == IN_BASE_UNITS:
        return value
    return parse_size(value if isinstance(value, str) else repr(value))


def _deadline(value: str) -> str:
    """A moment with its time zone, or a duration from the start of the run; kept as text."""
    if re.match(r"\s*[0-9]{4}-", value):
        try:
            parse_time(value.strip())
        except ValueError as error:
            raise ConfigError(
                f"{value!r} is not a moment with its time zone",
                kind="deadline",
                hint="Write it as 2027-01-31T08:00:00Z",
            ) from error
    else:
        parse_duration(value)
    return value.strip()


def _uri(value: str) -> str:
    parse_uri(value)
    return value


def _text(value: Any) -> Any:
    """What a program is given. The loader hands over what was typed, so a number loses nothing."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise ConfigError(f"found {describe(value)} where a text is needed", hint="For an empty text write ''")
    return value


def describe(value: Any) -> str:
    """A value in words, short enough for a line."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"a mapping ({', '.join(map(str, list(value)[:4]))})" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


_DURATION = {"type": "string", "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*[A-Za-z]+\s*)+$"}
_SCALAR = {"type": ["string", "number", "boolean"]}

Cadence = Annotated[
    str, BeforeValidator(_cadence), WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]})
]
Keep = Annotated[str, AfterValidator(_keep)]
Seconds = Annotated[float, BeforeValidator(_seconds), WithJsonSchema(_DURATION)]
Bytes = Annotated[
    int, BeforeValidator(_size), WithJsonSchema({"type": "string", "pattern": f"^{_SIZE.pattern}$".replace("?:", "")})
]
Deadline = Annotated[str, AfterValidator(_deadline)]
RunURI = Annotated[str, AfterValidator(_uri)]
Text = Annotated[str, BeforeValidator(_text), WithJsonSchema(_SCALAR)]
Word = Annotated[str, StringConstraints(min_length=1, pattern=r"^\S+$")]
"""A text without spaces: an identifier of somebody else's."""
ObjectName = Annotated[str, StringConstraints(max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""What every engine takes as a name: lower-case letters, digits and dashes."""
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Positive = Annotated[float, Field(gt=0)]
