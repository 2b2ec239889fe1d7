"""Which sources of notices are wanted, and which of them can answer here."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.errors import ConfigError
from unbroken.notice import azure, gcp, imds, kubernetes_node
from unbroken.notice.azure import AzureSource
from unbroken.notice.ec2 import EC2Source
from unbroken.notice.file import FILE_VARIABLE, FileSource
from unbroken.notice.gcp import GCPSource
from unbroken.notice.kubernetes_node import KubernetesNodeSource
from unbroken.notice.local_socket import SOCKET_VARIABLE, SocketSource
from unbroken.notice.place import cloud_of
from unbroken.notice.source import NoticeSource

NOTICES_VARIABLE = "UNBROKEN_NOTICES"
"""Environment variable with the wanted sources."""

SIGUSR1 = "sigusr1"
NAMES = ("ec2", "gcp", "azure", "kubernetes", "file", "socket", SIGUSR1)
"""All sources that can be left out. SIGTERM cannot."""

_CLOUDS = {"ec2": "an EC2 instance", "gcp": "a GCP instance", "azure": "an Azure virtual machine"}


@dataclass(frozen=True)
class Choice:
    """Which sources are wanted."""

    on: frozenset[str] = frozenset(NAMES)
    named: frozenset[str] = frozenset()
    """Those that were asked for by name: they are watched without a look at the place."""


@dataclass(frozen=True)
class Offer:
    """One source, and why it is watched or not."""

    name: str
    source: NoticeSource | None
    why: str


def parse_choice(text: str, where: str = NOTICES_VARIABLE) -> Choice:
    """Read ``ec2,gcp`` (these alone), ``-azure,-gcp`` (all but these), ``all`` or ``none``; "" means ``all``.

    Args:
        where: where the text comes from, for the error.

    Raises:
        ConfigError: a name is unknown, or names with and without a dash are mixed.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if words in ([], ["all"]):
        return Choice()
    if words == ["none"]:
        return Choice(frozenset())
    for word in words:
        if word.removeprefix("-") not in NAMES:
            raise _unknown(word.removeprefix("-"), where)
    out = frozenset(word[1:] for word in words if word.startswith("-"))
    named = frozenset(words) - {f"-{name}" for name in out}
    if out and named:
        raise ConfigError(
            f"{where}: {text!r} names sources to watch and sources to leave out", kind="notices",
            hint=f"Write either {','.join(sorted(named))} or {','.join(f'-{name}' for name in sorted(out))}",
        )  # fmt: skip
    return Choice(named, named) if named else Choice(frozenset(NAMES) - out)


def choice_of_environment() -> Choice:
    """The choice of ``UNBROKEN_NOTICES``.

    Raises:
        ConfigError: see :func:`parse_choice`.
    """
    return parse_choice(os.environ.get(NOTICES_VARIABLE, ""))


def offers(choice: Choice | None = None, *, clock: Clock = SYSTEM_CLOCK) -> list[Offer]:
    """Every source that is polled, with why it is watched here or not; takes microseconds and asks nobody.

    Args:
        choice: which are wanted; None takes the environment's.

    Raises:
        ConfigError: a setting of a source is not usable, or a source asked for by name lacks one.
    """
    wanted = choice_of_environment() if choice is None else choice
    cloud = cloud_of()
    return [_offer(name, wanted, cloud, clock) for name in NAMES if name != SIGUSR1]


def default_sources(choice: Choice | None = None, *, clock: Clock = SYSTEM_CLOCK) -> list[NoticeSource]:
    """The sources that may answer on this machine, as of :func:`offers`."""
    return [offer.source for offer in offers(choice, clock=clock) if offer.source is not None]


def _offer(name: str, choice: Choice, cloud: str, clock: Clock) -> Offer:
    if name not in choice.on:
        return Offer(name, None, f"left out by {NOTICES_VARIABLE} or --notices")
    why, on = _CLOUD_REASONS[name](name, cloud) if name in _CLOUDS else _set_up(name)
    if name in choice.named:
        why, on = "asked for by name", True
    return Offer(name, _make(name, clock) if on else None, why)


def _cloud_reason(name: str, cloud: str, variable: str) -> tuple[str, bool]:
    if os.environ.get(variable):
        return f"{variable} is set", True
    if cloud == name:
        return f"this is {_CLOUDS[name]}", True
    if not cloud:
        return "the firmware does not say where this is", True
    return f"this is no {_CLOUDS[name].split(' ', 1)[1]}, by its firmware", False


def _ec2_reason(name: str, cloud: str) -> tuple[str, bool]:
    if imds.disabled():
        return f"{imds.DISABLED_VARIABLE} is set", False
    return _cloud_reason(name, cloud, imds.ENDPOINT_VARIABLE)


_CLOUD_REASONS: dict[str, Callable[[str, str], tuple[str, bool]]] = {
    "ec2": _ec2_reason,
    "gcp": lambda name, cloud: _cloud_reason(name, cloud, gcp.HOST_VARIABLE),
    "azure": lambda name, cloud: _cloud_reason(name, cloud, azure.ENDPOINT_VARIABLE),
}


def _set_up(name: str) -> tuple[str, bool]:
    """For the sources that exist where a variable says so."""
    if name == "kubernetes":
        if not (os.environ.get(kubernetes_node.API_VARIABLE) or os.environ.get("KUBERNETES_SERVICE_HOST")):
            return "this is no pod", False
        variable = kubernetes_node.NODE_VARIABLE
    else:
        variable = FILE_VARIABLE if name == "file" else SOCKET_VARIABLE
    if os.environ.get(variable):
        return f"{variable} is set", True
    return f"{variable} is not set", False


def _make(name: str, clock: Clock) -> NoticeSource:
    if name == "ec2":
        return EC2Source(clock=clock)
    if name == "gcp":
        return GCPSource(clock=clock)
    if name == "azure":
        return AzureSource(clock=clock)
    if name == "kubernetes":
        return KubernetesNodeSource(clock=clock)
    variable = FILE_VARIABLE if name == "file" else SOCKET_VARIABLE
    path = os.environ.get(variable, "")
    if not path:
        raise ConfigError(f"the source {name!r} is asked for, and {variable} is not set", kind="notices",
                          hint=f"Set {variable} to its path")  # fmt: skip
    return FileSource(path, clock=clock) if name == "file" else SocketSource(path, clock=clock)


def _unknown(word: str, where: str) -> ConfigError:
    near = difflib.get_close_matches(word, NAMES, n=1, cutoff=0.5)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    names = ", ".join(NAMES)
    return ConfigError(
        f"{where}: {word!r} is no source of notices", kind="notices",
        hint=f"{guess}The sources are {names}; -NAME leaves one out",
    )  # fmt: skip
