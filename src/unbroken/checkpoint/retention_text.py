"""Retention as people type it: ``last=3,every=10000,best=loss``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Literal

from unbroken.checkpoint.retention import FORM, KeepAny, KeepBest, KeepEvery, KeepLast, Policy
from unbroken.clock import parse_duration
from unbroken.errors import ConfigError


def keep_policy(keep: str | Policy | Iterable[Policy] | None) -> Policy | None:
    """What ``keep=`` means: a policy, several of them, their textual form, or None for everything.

    Raises:
        ConfigError: it is none of these.
    """
    if keep is None or isinstance(keep, Policy):
        return keep
    if isinstance(keep, str):
        return parse_keep(keep)
    if isinstance(keep, Iterable):
        policies = tuple(keep)
        if policies and all(isinstance(part, Policy) for part in policies):
            return KeepAny(tuple(single for part in policies for single in part.parts))
    raise ConfigError(f"keep={keep!r} is no retention policy", kind="keep", hint=FORM)


def parse_keep(text: str) -> Policy:
    """Read the textual form: pieces between commas, united.

    ``last=3``; ``every=10000`` (steps) or ``every=6h`` (a duration); ``best=loss``, ``best=accuracy:max``,
    ``best=loss:min:3`` (the three smallest).

    Raises:
        ConfigError: names the piece that is wrong, and the nearest key.
    """
    policies = tuple(_parse_piece(piece.strip()) for piece in text.split(","))
    return policies[0] if len(policies) == 1 else KeepAny(policies)


def _parse_piece(piece: str) -> Policy:
    key, equals, value = (part.strip() for part in piece.partition("="))
    readers = {"last": _parse_last, "every": _parse_every, "best": _parse_best}
    if key not in readers:
        near = difflib.get_close_matches(key.lower(), readers, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? {FORM}" if near else FORM
        raise ConfigError(f"{piece!r} is no retention policy: there is no key {key!r}", kind="keep", hint=hint)
    if not equals or not value:
        raise ConfigError(f"{piece!r} is no retention policy: {key} has no value", kind="keep", hint=FORM)
    try:
        return readers[key](value)
    except ConfigError as error:
        raise ConfigError(f"{piece!r} is no retention policy: {error.message}", kind="keep", hint=FORM) from error


def _parse_last(value: str) -> Policy:
    return KeepLast(_whole(value))


def _parse_every(value: str) -> Policy:
    if re.fullmatch(r"[+-]?[0-9]+", value):
        return KeepEvery(steps=_whole(value))
    return KeepEvery(hours=parse_duration(value) / 3600.0)


def _parse_best(value: str) -> Policy:
    name, *rest = value.split(":")
    count = _whole(rest.pop()) if rest and re.fullmatch(r"[+-]?[0-9]+", rest[-1]) else 1
    mode: Literal["min", "max"] = "min"
    if rest:
        if rest[-1] not in ("min", "max"):
            raise ConfigError(f"{rest[-1]!r} is neither min nor max nor a number of checkpoints", kind="keep")
        mode = "max" if rest.pop() == "max" else "min"
    return KeepBest(":".join([name, *rest]), count, mode)


def _whole(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise ConfigError(f"{value!r} is no whole number from 1", kind="keep")
    return int(value)
