"""How often to save, as people type it: ``500`` steps, ``10min``, ``auto,cap=1%,loss=15min``."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from unbroken.clock import parse_duration
from unbroken.errors import ConfigError

_HINT = "Write a number of steps, as 500, a duration, as '10min', or 'auto', as 'auto' or 'auto,cap=1%,loss=15min'"
_WHOLE = re.compile(r"-?[0-9]+")
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")


@dataclass(frozen=True)
class Auto:
    """Save as often as the cap allows, and no less often than the tolerated loss demands."""

    cap: float = 0.01
    """Share of the training time that saving may cost; between 0 and 1."""
    loss: float = 1800.0
    """Seconds of training that may have to be done again after an interruption."""


@dataclass(frozen=True)
class Every:
    """A cadence: exactly one of the three is set."""

    steps: int | None = None
    seconds: float | None = None
    auto: Auto | None = None


def parse_every(value: int | str) -> Every:
    """Read ``every=``: a number of steps (``500`` or ``"500"``), a duration (``"10min"``), or ``"auto"``.

    ``auto`` takes options after commas: ``cap=1%``, the share of training time that saving may cost, and
    ``loss=15min``, the most work that may be lost.

    Raises:
        ConfigError: it is none of these, or not positive; names the option that is wrong, and the nearest one.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f"every={value!r} is no cadence", kind="every", hint=_HINT)
    if isinstance(value, int) or _WHOLE.fullmatch(value.strip()):
        if int(value) < 1:
            raise ConfigError(f"every={value!r} is less than one step", kind="every", hint=_HINT)
        return Every(steps=int(value))
    word, *options = value.split(",")
    if word.strip().lower() == "auto":
        return Every(auto=_parse_auto(value, options))
    try:
        return Every(seconds=parse_duration(value))
    except ConfigError as error:
        raise ConfigError(f"every={value!r} is no cadence", kind="every", hint=_HINT) from error


def _parse_auto(value: str, options: list[str]) -> Auto:
    readers = {"cap": _parse_cap, "loss": parse_duration}
    found: dict[str, float] = {}
    for option in options:
        key, _, text = (part.strip() for part in option.partition("="))
        if key not in readers:
            near = difflib.get_close_matches(key.lower(), readers, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}? {_HINT}" if near else _HINT
            raise ConfigError(f"every={value!r}: auto has no option {key!r}", kind="every", hint=hint)
        if key in found:
            raise ConfigError(f"every={value!r} gives {key} twice", kind="every", hint=_HINT)
        try:
            found[key] = readers[key](text)
        except ConfigError as error:
            raise ConfigError(f"every={value!r}: {key}: {error.message}", kind="every", hint=_HINT) from error
    return Auto(**found)


def _parse_cap(text: str) -> float:
    # The sign is demanded: "cap=1" could be read as 1 % or as everything.
    match = _PERCENT.fullmatch(text)
    share = float(match[1]) / 100.0 if match else 0.0
    if not 0.0 < share < 1.0:
        raise ConfigError(f"{text!r} is no share between 0% and 100%", kind="every")
    return share
