"""How fast bytes get to the store and back, and how long a save takes by that."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random

from unbroken.clock import Clock, format_duration
from unbroken.doctor.finding import Finding, note, sound, warning
from unbroken.doctor.place import Place
from unbroken.doctor.probe import Probe, probing
from unbroken.size import size_text

_SIZES = (1 << 20, 8 << 20, 64 << 20)
"""Bytes of one object after the other; the next is sent only where it takes few seconds."""
_BLOCK = 1 << 20
_RANGE = 16 << 20
_READERS = 4
_ENOUGH = 5.0
"""Seconds that the next object may take, by the one before."""
NOTICE = 120.0
"""Seconds from the notice of an EC2 spot interruption to the kill."""


def check_bandwidth(place: Place) -> list[Finding]:
    """Send and read at most 73 MiB, and hold what that means for a save against the notice."""
    if not place.uri:
        return [note("no run is named, so no store was measured", todo="Give a job file, or --run URI")]
    with probing(place.uri) as probe:
        up, key, size = _upload(probe, place.clock)
        down = size / _seconds(place.clock, partial(_read, probe, key, size))
    measured = f"{size_text(up)}/s to the store and {size_text(down)}/s back, by an object of {size_text(size)}"
    return [judged(measured, up, place.state, place.grace)]


def judged(measured: str, up: float, state: int | None, grace: float) -> Finding:
    """What a bandwidth means for a save.

    Args:
        measured: what was measured, for people.
        up: bytes a second.
        state: bytes; None where nobody said.
        grace: seconds from a stop signal to the kill.
    """
    if state is None:
        fits = f"a state of {size_text(up * grace)} fits in the grace period of {format_duration(grace)}"
        return note(f"{measured}; {fits}", todo="Say how large the state is (resources.state, or --state)")
    seconds = state / up
    save = f"{measured}; a save of {size_text(state)} takes {format_duration(seconds)}"
    if seconds <= min(grace, NOTICE):
        return sound(f"{save}, within the grace period of {format_duration(grace)}")
    why = "An interruption then loses the steps since the last durable checkpoint"
    if seconds <= NOTICE:
        late = f"not after a signal alone ({format_duration(grace)})"
        found = f"{save}: in time after a notice ({format_duration(NOTICE)}), {late}"
        return warning(found, why, "Lengthen the grace period, or see that notices are heard (the check metadata)")
    todo = "Use a bucket in this region or a faster machine, or save so often that little is lost (every: auto)"
    return warning(f"{save}, and a notice leaves {format_duration(NOTICE)}", why, todo)


def _upload(probe: Probe, clock: Clock) -> tuple[float, str, int]:
    """Bytes a second, and the last object that was sent, with its size."""
    block = Random(0).randbytes(_BLOCK)  # a store that compresses must not look fast
    rate, sent = 0.0, (0.0, "", 0)
    for index, size in enumerate(_SIZES):
        if index and size > rate * _ENOUGH:
            break
        key = probe.key(f"bandwidth-{index}")
        rate = size / _seconds(clock, partial(probe.store.put, key, [block] * (size // _BLOCK)))
        sent = (rate, key, size)
    return sent


def _read(probe: Probe, key: str, size: int) -> None:
    """Read an object as a restore does: several ranges at a time."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="unbroken-doctor") as pool:
        starts = range(0, size, _RANGE)
        for _ in pool.map(lambda start: probe.store.get_range(key, start, min(_RANGE, size - start)), starts):
            pass


def _seconds(clock: Clock, action: Callable[[], object]) -> float:
    before = clock.monotonic()
    action()
    return max(1e-6, clock.monotonic() - before)
