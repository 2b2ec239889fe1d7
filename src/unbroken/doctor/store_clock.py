"""How far this machine's clock is from the store's."""

from __future__ import annotations

from unbroken.clock import format_duration
from unbroken.doctor.finding import Finding, failure, note, sound, warning
from unbroken.doctor.place import Place
from unbroken.doctor.probe import probing
from unbroken.store import Dated

_COARSE = 1.0
"""Seconds by which the moment of an object may be cut off."""
_NOTICEABLE = 5.0
_REFUSED = 900.0
"""Seconds from which S3 answers RequestTimeTooSkewed."""
_TODO = "Set this machine's clock by NTP (chrony, or the cloud's time service)"


def check_clock(place: Place) -> list[Finding]:
    """Compare the moment that the store gives to a new object with this machine's own."""
    if not place.uri:
        return [note("no run is named, so there is no clock to compare with", todo="Give a job file, or --run URI")]
    with probing(place.uri) as probe:
        if not isinstance(probe.store, Dated):
            return [note(f"{probe.store.uri} does not say when an object was written")]
        key = probe.key("clock")
        before = place.clock.now()
        probe.store.put(key, [b"unbroken doctor"])
        after = place.clock.now()
        written = probe.store.written_at(key)
    return [_judged(skew(before, after, written))]


def skew(before: float, after: float, written: float) -> float:
    """Seconds by which this machine is behind the store; negative where it is ahead.

    Args:
        before, after: seconds since the epoch by this machine, around the put.
        written: seconds since the epoch by the store; it may be cut to whole seconds.
    """
    if written > after:
        return written - after
    return min(0.0, written + _COARSE - before)


def _judged(seconds: float) -> Finding:
    if abs(seconds) < _NOTICEABLE:
        return sound("this machine's clock and the store's agree")
    text = (
        f"this machine's clock is {format_duration(abs(seconds))} {'behind' if seconds > 0 else 'ahead of'} the store's"
    )
    if abs(seconds) >= _REFUSED:
        return failure(text, "Object stores refuse requests with such a clock", _TODO)
    return warning(
        text, "A notice names the moment of the kill: with a wrong clock the save begins late or never", _TODO
    )
