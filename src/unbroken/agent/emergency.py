"""What to upload in the time that a notice leaves: what is in flight, the stop step, or both. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from unbroken.size import size_text

_CAREFUL = 0.8
"""Share of the measured bandwidth that is counted on: every machine of the pool may be uploading now."""
_NEARLY_DONE = 0.1
"""Share of the time left within which finishing what is in flight is cheap insurance."""
_HARDLY_NEWER = 0.1
"""Share of the unsaved work that the stop step must add, for what is in flight to be given up for it."""
_EARLIER_SECONDS = 1.0
_COLLAPSED, _RECOVERED = 0.7, 1.5
"""Factors of the bandwidth beyond which a choice is made anew."""


class Action(Enum):
    """What to do with the time that is left."""

    ONLY = "only"
    """Nothing is in flight: upload the stop step."""
    FINISH = "finish"
    """Finish what is in flight, and nothing after it."""
    REPLACE = "replace"
    """Give up what is in flight, and upload the stop step."""
    BOTH = "both"
    """Finish what is in flight, then upload the stop step."""


@dataclass(frozen=True)
class InFlight:
    """The upload under way."""

    step: int
    left: float
    """Bytes that are still to be sent."""


@dataclass(frozen=True)
class Situation:
    """What the choice depends on.

    Args:
        left: seconds until everything must be committed: until the deadline, less a margin for the journal's entries
            and for leaving. Negative where it has passed.
        stop_step: the step at which the trainers stop.
        stop_bytes: what its upload will write: as much as the last one wrote is a good guess, the size of the state a
            careful one.
        in_flight: the upload under way, if any.
        bandwidth: bytes a second of the last uploads; None where nothing was measured yet.
        stage_seconds: what copying the stop step into its slot will take; 0 once it is sealed.
        second_slot: whether it can be copied while the other is in flight; else only after that has ended or was given
            up.
        durable_step: step of the newest commit, or -1.
    """

    left: float
    stop_step: int
    stop_bytes: float
    in_flight: InFlight | None = None
    bandwidth: float | None = None
    stage_seconds: float = 0.0
    second_slot: bool = True
    durable_step: int = -1

    def finish_seconds(self, careful: bool = True) -> float:
        """Seconds until what is in flight is durable; infinite where the bandwidth is unknown."""
        return self._upload(self.in_flight.left, careful) if self.in_flight else 0.0

    def stop_seconds(self, careful: bool = True) -> float:
        """Seconds until the stop step is durable, if nothing else is sent."""
        return self.stage_seconds + self._upload(self.stop_bytes, careful)

    def both_seconds(self, careful: bool = True) -> float:
        """Seconds until both are durable, one after the other."""
        first, stage = self.finish_seconds(careful), self.stage_seconds
        ready = max(first, stage) if self.second_slot else first + stage
        return ready + self._upload(self.stop_bytes, careful)

    def _upload(self, size: float, careful: bool) -> float:
        rate = (self.bandwidth or 0.0) * (_CAREFUL if careful else 1.0)
        return size / rate if rate > 0 else math.inf


@dataclass(frozen=True)
class Choice:
    """What to do, and why."""

    action: Action
    text: str
    """Why, with its numbers, in one sentence. Durations are careful ones."""
    situation: Situation
    numbers: dict[str, float] = field(default_factory=dict)
    """The same for the journal: seconds, bytes, steps; what is not known is left out."""


def choose(situation: Situation) -> Choice:
    """Choose what gives the newest checkpoint that can be counted on.

    What is in flight is never given up for something that does not fit. Where nothing fits, what has begun goes on: it
    has the least left to do, or at least what it has sent.
    """
    action, reason = _decide(situation)
    return Choice(action, f"{_facts(situation)}: {reason}", situation, _numbers(situation))


def should_revise(chosen: Choice, *, elapsed: float, left: float, bandwidth: float | None) -> bool:
    """Whether to choose again, while what was in flight still is.

    Args:
        elapsed: seconds since the choice.
        left: as of :class:`Situation`, now.
        bandwidth: as of :class:`Situation`, now.
    """
    before = chosen.situation
    if before.in_flight is None or before.in_flight.step >= before.stop_step or chosen.action is Action.REPLACE:
        return False  # there is one thing to upload, and no choice
    if left < before.left - elapsed - _EARLIER_SECONDS:
        return True
    if bandwidth is None or before.bandwidth is None:
        return bandwidth is not before.bandwidth
    return bandwidth < _COLLAPSED * before.bandwidth or bandwidth > _RECOVERED * before.bandwidth


def _decide(now: Situation) -> tuple[Action, str]:
    flying, stop = now.in_flight, f"step {now.stop_step}"
    stop_fits = now.stop_seconds() <= now.left
    if flying is None:
        if stop_fits or now.bandwidth is None:
            return Action.ONLY, f"saving {stop}"
        return Action.ONLY, f"trying {stop} all the same{_stands(now)}"
    first = f"step {flying.step}"
    if flying.step >= now.stop_step:
        return Action.FINISH, f"it is the stop step{'' if _finish_fits(now) else _stands(now)}"
    if now.bandwidth is None:
        # The order costs what is in flight nothing, and the first bytes that are measured bring another choice.
        return Action.BOTH, f"no bandwidth is known yet: finishing {first}, then {stop} if there is time"
    if now.both_seconds() <= now.left:
        return Action.BOTH, f"finishing {first}, then {stop}"
    if now.finish_seconds() <= _NEARLY_DONE * now.left and now.both_seconds(careful=False) <= now.left:
        return Action.BOTH, f"{first} is nearly done: finishing it, then {stop}"
    if not _finish_fits(now):
        if stop_fits:
            return Action.REPLACE, f"giving up {first} for {stop}, which fits"
        return Action.FINISH, f"neither is sure to fit: going on with {first}, which has begun{_stands(now)}"
    if not stop_fits:
        return Action.FINISH, f"finishing {first}"
    if now.stop_step - flying.step < _HARDLY_NEWER * (now.stop_step - now.durable_step):
        return Action.FINISH, f"{stop} is hardly newer: finishing {first}"
    return Action.REPLACE, f"giving up {first} for {stop}"


def _finish_fits(now: Situation) -> bool:
    return now.bandwidth is None or now.finish_seconds() <= now.left


def _stands(now: Situation) -> str:
    return f"; step {now.durable_step} stands" if now.durable_step >= 0 else "; nothing is saved yet"


def _facts(now: Situation) -> str:
    parts = []
    flying = now.in_flight
    if flying is not None:
        parts.append(f"{size_text(flying.left)} of step {flying.step} in flight{_takes(now.finish_seconds())}")
    if flying is None or flying.step < now.stop_step:
        parts.append(f"{size_text(now.stop_bytes)} of step {now.stop_step}{_takes(now.stop_seconds())}")
    return f"{_seconds(max(0.0, now.left))} left; {', '.join(parts)}"


def _takes(seconds: float) -> str:
    return f" take {_seconds(seconds)}" if math.isfinite(seconds) else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"


def _numbers(now: Situation) -> dict[str, float]:
    found: dict[str, float] = {
        "left": now.left, "stop_step": now.stop_step, "stop_bytes": now.stop_bytes, "stop_seconds": now.stop_seconds(),
        "durable_step": now.durable_step,
    }  # fmt: skip
    if now.bandwidth is not None:
        found["bandwidth"] = now.bandwidth
    if now.in_flight is not None:
        found["in_flight_step"] = now.in_flight.step
        found["in_flight_bytes"] = now.in_flight.left
        found["in_flight_seconds"] = now.finish_seconds()
    return {name: round(value, 3) for name, value in found.items() if math.isfinite(value)}
