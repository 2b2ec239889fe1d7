"""The status line in words. Pure: what is known in, text out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from unbroken.clock import format_duration
from unbroken.link.progress import Progress

_WINDOW = 30.0
"""Seconds over which speed is averaged."""


@dataclass(frozen=True)
class View:
    """What the status line shows. Moments are wall-clock seconds; 0 and -1 mean "not known"."""

    attempt: int = 0
    progress: Progress | None = None
    """Of the slowest rank here."""
    speed: float = 0.0
    """Steps a second."""
    durable_step: int = -1
    durable_at: float = 0.0
    saving_last: int = -1
    """Step whose save is under way before leaving."""
    notice_source: str = ""
    deadline: float = 0.0
    phase: str = ""
    """Said instead of the step where there is none: ``starting``, ``restart in 4s``, ..."""
    ranks: int = 1
    """Of the attempt, on all nodes together."""
    ranks_here: int = 1


class SpeedMeter:
    """Steps a second over the last half minute of readings."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque()

    def add(self, progress: Progress) -> None:
        """Take a reading; a step that went back (a restart) begins anew."""
        readings = self._readings
        if readings and progress.step < readings[-1][1]:
            readings.clear()
        if not readings or progress.step > readings[-1][1]:
            readings.append((progress.at, progress.step))
        while len(readings) > 2 and readings[1][0] <= progress.at - _WINDOW:
            readings.popleft()

    @property
    def speed(self) -> float:
        """Steps a second; 0.0 before two different steps were read."""
        if len(self._readings) < 2:
            return 0.0
        (first_at, first), (last_at, last) = self._readings[0], self._readings[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0


def format_view(view: View, now: float) -> str:
    """The line, such as ``attempt 3 · step 1234/10000 · 8.1 steps/s · durable 1200 (42s ago) · next save in 18s``."""
    parts = [f"attempt {view.attempt}"] if view.attempt else []
    if view.ranks > 1:
        parts.append(f"{view.ranks} ranks, {'all' if view.ranks_here == view.ranks else view.ranks_here} here")
    parts += _progress(view, now)
    parts += _durable(view, now)
    parts += _next_save(view, now)
    if view.saving_last >= 0:
        parts.append(f"saving step {view.saving_last} before leaving")
    if view.notice_source:
        parts.append(f"NOTICE {view.notice_source}: {format_duration(max(0.0, view.deadline - now))} left")
    return " · ".join(parts)


def _progress(view: View, now: float) -> list[str]:
    if view.phase or view.progress is None:
        return [view.phase or "starting"]
    page = view.progress
    parts = [f"step {page.step}/{page.until}" if page.until >= 0 else f"step {page.step}"]
    if view.speed > 0:
        parts.append(f"{view.speed:.1f} steps/s" if view.speed >= 1 else f"{1 / view.speed:.1f} s/step")
        longest = max(60.0, 20 / view.speed)
        if now - page.at > longest and (page.until < 0 or page.step < page.until):
            parts.append(f"no step for {format_duration(now - page.at)}")
    return parts


def _durable(view: View, now: float) -> list[str]:
    if view.durable_step < 0:
        return ["nothing durable yet"] if view.attempt else []
    age = f" ({format_duration(max(0.0, now - view.durable_at))} ago)" if view.durable_at else ""
    return [f"durable {view.durable_step}{age}"]


def _next_save(view: View, now: float) -> list[str]:
    if view.phase or view.progress is None or view.saving_last >= 0:
        return []
    if view.progress.next_save_at > 0:
        return [f"next save in {format_duration(max(0.0, view.progress.next_save_at - now))}"]
    if view.progress.next_save_step > view.progress.step:
        return [f"next save at step {view.progress.next_save_step}"]
    return []
