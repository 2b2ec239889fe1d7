"""Whether everything that a run does to its store is allowed there, by doing it."""

from __future__ import annotations

from collections.abc import Callable

from unbroken.doctor.finding import Finding, failure, failure_of, note, sound, warning
from unbroken.doctor.place import Place
from unbroken.doctor.probe import Probe, probing
from unbroken.errors import EXIT_IO, AccessError, UnbrokenError

_TEXT = b"unbroken doctor"
_OWNER = "Create-only puts decide which attempt owns a run: without them two can write to it at once"
_WHY = {
    "put": "Without it no checkpoint can be stored",
    "create-only put": _OWNER,
    "ranged get": "Without it no checkpoint can be read back",
    "list": "Without it a run cannot find its newest checkpoint",
    "delete": "Retention and unbroken prune cannot take old checkpoints away, so the bill grows",
}
_SKEWED = "RequestTimeTooSkewed"


def check_store(place: Place) -> list[Finding]:
    """Put, create-only put, ranged get, list and delete, each tried below the run's prefix."""
    if not place.uri:
        return [note("no run is named, so no store was tried", todo="Give a job file, or --run URI")]
    try:
        with probing(place.uri) as probe:
            findings = _try_all(probe)
    except UnbrokenError as error:
        return [failure_of(error, "A run keeps its checkpoints and its journal there")]
    if probe.failure is not None and (probe.written or isinstance(probe.failure, AccessError)):
        left = f"; {', '.join(probe.written)} may be left in {probe.store.uri}" if probe.written else ""
        todo = "Let the role delete below this prefix, and delete by hand what is left"
        findings.append(warning(probe.failure.message + left, _WHY["delete"], todo))
    return findings or [sound(f"{', '.join(_WHY)}: all work in {probe.store.uri}")]


def _try_all(probe: Probe) -> list[Finding]:
    """What is denied is said for each action; a store that cannot be used at all, once."""
    findings: list[Finding] = []
    for name, action in _ACTIONS:
        try:
            found = action(probe)
        except AccessError as error:
            found = _denied(error, _WHY[name])
        except UnbrokenError as error:
            return [*findings, failure_of(error, _WHY[name])]
        findings += [found] if found is not None else []
    return findings


def _denied(error: AccessError, why: str) -> Finding:
    if _SKEWED not in error.message:
        return failure_of(error, why)
    why = "The store refuses requests of a machine whose clock is more than 15 minutes off"
    return failure(error.message, why, "Set this machine's clock by NTP (chrony)", error.exit_code)


def _put(probe: Probe) -> None:
    key = probe.key("put")
    probe.store.put(key, [_TEXT])
    probe.written.append(key)


def _create(probe: Probe) -> Finding | None:
    key = probe.key("create")
    made = probe.store.create(key, _TEXT)
    probe.written.append(key)
    # A lost reply and its retry look like somebody else's object: the content tells.
    if not made and probe.store.get(key) != _TEXT:
        return failure(f"a create-only put of the new key {key} was refused", _OWNER, "Use another store", EXIT_IO)
    if probe.store.create(key, b"another"):
        found = f"{probe.store.uri} replaced an object by a put that must only create"
        return failure(found, _OWNER, "Use a store that honours If-None-Match, such as S3 itself", EXIT_IO)
    return None


def _get(probe: Probe) -> Finding | None:
    if not probe.written:
        return note("a ranged get was not tried: there is nothing to read")
    if bytes(probe.store.get_range(probe.written[0], 9, 6)) == _TEXT[9:]:
        return None
    found = f"{probe.store.uri} gave other bytes than were put"
    return failure(found, "Checkpoints would be damaged when they are read", "Use another store", EXIT_IO)


def _list(probe: Probe) -> Finding | None:
    listed = [info.key for info in probe.store.list(probe.folder)]
    missing = [key for key in probe.written if key not in listed]
    if not missing:
        return None
    found = f"a listing of {probe.store.uri} lacks objects that were just put: {', '.join(missing)}"
    return failure(found, "A run would miss its newest checkpoint", "Use a strongly consistent store", EXIT_IO)


_ACTIONS: list[tuple[str, Callable[[Probe], Finding | None]]] = [
    ("put", _put),
    ("create-only put", _create),
    ("ranged get", _get),
    ("list", _list),
]
