"""Whether a save fits between an interruption's notice and the end, said before the first interruption comes. Pure."""

from __future__ import annotations

import math

from unbroken.clock import format_duration
from unbroken.every import Every
from unbroken.size import size_text

_EXIT_SECONDS, _EXIT_SHARE = 5.0, 0.1
"""What the last save leaves of the notice for going: at most so many seconds, at most this share."""
_SLOWER = 1.25
"""A save may take this much longer than the measured one: storage has worse moments."""
_PROPOSED_SECONDS = 600.0


def notice_too_short(
    size: float, seconds: float, grace: float, every: Every, *, step_seconds: float = 0.0
) -> str | None:
    """What to tell a user whose saves do not fit the notice; None where they do, with a margin.

    How much work may be lost is the user's to say. What is proposed is ten minutes, the default of ``every``, or the
    time that a save takes where that is longer, as saves cannot follow each other faster; and what that makes of the
    loss. Nothing is proposed to who saves as often already, or by ``auto``, which was given a loss.

    Args:
        size: bytes that the save wrote.
        seconds: from its step boundary until it was committed.
        grace: seconds from the notice to the end of the machine.
        every: the cadence of the scheduled saves.
        step_seconds: how long a step takes, if known: the notice may come at the beginning of one.
    """
    room = grace - min(_EXIT_SECONDS, _EXIT_SHARE * grace)
    if step_seconds + _SLOWER * seconds <= room:
        return None
    facts = f"{size_text(size)} takes {_seconds(seconds)} here; the notice is {_seconds(grace)}"
    if seconds > room:
        outcome = "the newest scheduled checkpoint will stand"
    else:
        needed = "the step under way and slower storage" if step_seconds > 0 else "slower storage"
        facts += f", too little for {needed}"
        outcome = "the newest scheduled checkpoint may have to stand"
    return f"{facts}: on an interruption {outcome}, and {_loss(seconds, every, step_seconds)}"


def _loss(seconds: float, every: Every, step_seconds: float) -> str:
    if every.auto is not None:
        return f"up to {format_duration(max(every.auto.loss, 2.0 * seconds))} of work is lost"
    interval = every.seconds
    if every.steps is not None and step_seconds > 0:
        interval = every.steps * step_seconds
    minutes = math.ceil(max(_PROPOSED_SECONDS, seconds) / 60.0)
    proposal = f'every="{minutes}min"'
    if interval is None:
        return f"the work since then is lost; {proposal} or less makes that at most {_worst(60.0 * minutes, seconds)}"
    lost = f"up to {_worst(interval, seconds)} of work is lost"
    return lost if interval <= 60.0 * minutes else f"{lost}; {proposal} makes that {_worst(60.0 * minutes, seconds)}"


def _worst(interval: float, seconds: float) -> str:
    """The work at risk just before the next scheduled save is durable."""
    return format_duration(max(interval, seconds) + seconds)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
