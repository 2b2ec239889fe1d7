"""The loop that is measured: steps of training, a save every so many of them, and what the saves cost it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from method import Place, Saving
from process_costs import SaverTime
from training_state import Training

_WARM_STEPS = 5
_STEPS_AFTER = 1
"""How many steps, after the one during which a save became durable, still belong to it: memory and files are freed."""
_FEWEST_QUIET = 3
_LONGEST_WAIT = 600.0
_LOOK_SECONDS = 0.05
"""While a save is due and cannot begin, the store and the processes are not looked at in each step."""
_SETTLE_SECONDS = 0.3


@dataclass
class _Save:
    step: int
    at: float
    """Wall-clock time of the boundary."""
    stall: float
    before: tuple[int, float]
    """Bytes in the store, and the saver's processor seconds, when it was about to begin."""


@dataclass
class _Step:
    number: int
    at: float
    """Wall-clock time of its end."""
    seconds: float
    """With the boundary before it, unless a save began there."""


class Loop:
    """Trains, and saves at multiples of ``every`` steps until ``saves`` were begun and the next one would be due.

    Args:
        saving: the method.
        training: what is trained.
        place: where it saves to.
        every: steps from save to save; a save that is due while another is under way begins later.
        saves: how many.
    """

    def __init__(self, saving: Saving, training: Training, place: Place, *, every: int, saves: int) -> None:
        self._saving = saving
        self._training = training
        self._place = place
        self._every = every
        self._count = saves
        self._steps: list[_Step] = []
        self._saves: list[_Save] = []
        self._digests: list[str] = []

    def run(self, *, settle: bool = False) -> dict[str, Any]:
        """Do it, and let the last save become durable.

        Args:
            settle: pause before the method opens, so that somebody who samples memory sees how much there was.

        Returns:
            each save, the digests of the state that the last one must hold, and times for who samples memory.

        Raises:
            RuntimeError: saves are due and do not begin.
        """
        warm = [self._training.timed_step() for _ in range(_WARM_STEPS)][1:]
        costs = SaverTime()
        time.sleep(_SETTLE_SECONDS if settle else 0.0)
        opened = time.monotonic()
        self._saving.open(self._every)
        try:
            self._train(costs)
            spent = costs.total()
        finally:
            durable = self._saving.close()
        ended = time.monotonic()
        samples = [save.before for save in self._saves] + [(self._place.stored(), spent)]
        return {
            "saves": self._about(durable, samples, warm), "digests": self._digests, "opened": opened, "ended": ended,
            "step": statistics.median(warm),
        }  # fmt: skip

    def _train(self, costs: SaverTime) -> None:
        step, due_at, boundary = 0, self._every, 0.0
        looked = waited = 0.0
        before = (0, 0.0)
        while True:
            seconds = self._training.timed_step()
            step += 1
            self._steps.append(_Step(step, time.time(), boundary + seconds))
            if len(self._saves) == self._count and step >= due_at:
                return  # before that boundary, at which another save would begin
            due = step >= due_at
            if due:
                self._digests = self._training.digests()
                if time.monotonic() > looked + _LOOK_SECONDS:
                    before, looked = (self._place.stored(), costs.total()), time.monotonic()
            at = time.time()
            with costs:
                began = time.monotonic()
                saved = self._saving.boundary(step, due=due)
                boundary = time.monotonic() - began
            waited = waited + boundary + seconds if due and not saved else 0.0
            if saved:
                self._saves.append(_Save(step, at, boundary, before))
                due_at, boundary = (step // self._every + 1) * self._every, 0.0
            elif waited > _LONGEST_WAIT:
                raise RuntimeError(f"save {len(self._saves) + 1} of {self._count} has not begun for {waited:.0f} s")

    def _about(self, durable: list[float], samples: list[tuple[int, float]], warm: list[float]) -> list[dict[str, Any]]:
        """Of each save: its stall, what the training lost, when it was durable, what was stored, processor seconds.

        Lost is the stall, and by how much the steps until it was durable, and one after that, were longer than the
        median of the steps that no save touched.
        """
        windows = [self._window(number, durable) for number in range(len(self._saves))]
        touched = {step.number for window in windows for step in window}
        quiet = [step.seconds for step in self._steps[1:] if step.number not in touched]
        usual = statistics.median(quiet if len(quiet) >= _FEWEST_QUIET else warm)
        return [
            {
                "stall": save.stall,
                "lost": save.stall + sum(step.seconds - usual for step in window),
                "durable": durable[number] - save.at if durable else None,
                "stored": samples[number + 1][0] - samples[number][0],
                "processor": samples[number + 1][1] - samples[number][1],
                "steps": len(window),
                "usual_step": usual,
                "whole_period": len(window) == self._period(number),
            }
            for number, (save, window) in enumerate(zip(self._saves, windows, strict=True))
        ]

    def _period(self, number: int) -> int:
        """How many steps lie between a save and the next one, or the end."""
        ends = [save.step for save in self._saves[1:]] + [self._steps[-1].number]
        return ends[number] - self._saves[number].step

    def _window(self, number: int, durable: list[float]) -> list[_Step]:
        """The steps that a save may have slowed."""
        first = self._saves[number].step
        steps = self._steps[first : first + self._period(number)]
        done = durable[number] if durable else self._saves[number].at
        during = sum(step.at < done for step in steps)
        return steps[: during + 1 + _STEPS_AFTER]
