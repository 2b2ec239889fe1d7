"""Pruning in the course of a training: between saves, in the saver's thread, and never at a save's cost."""

from __future__ import annotations

import logging
from collections.abc import Callable

from unbroken.checkpoint.pruning import Pruner
from unbroken.clock import Clock
from unbroken.errors import AccessError, FencedError, StoreError

_log = logging.getLogger("unbroken")

_TURN_SECONDS = 20.0
"""Longest turn: a training that ends waits for the one under way."""


class Retention:
    """Retires and deletes checkpoints after commits. What fails is said once, and never fails the training.

    Args:
        pruner: used by the saver's thread alone.
        give_way: whether something that matters more is waiting.
        report: told what went wrong, for the journal.
        clock: by which a turn is bounded.
    """

    def __init__(
        self, pruner: Pruner, *, give_way: Callable[[], bool], report: Callable[[str], None], clock: Clock
    ) -> None:
        self._pruner = pruner
        self._give_way = give_way
        self._report = report
        self._clock = clock
        self._off = False
        self._said = ""

    def turn(self) -> None:
        """Prune until all is done, or something that matters more is waiting.

        Raises:
            FencedError: another attempt owns the run.
        """
        if self._off:
            return
        deadline = self._clock.monotonic() + _TURN_SECONDS
        try:
            done = self._pruner.turn(lambda: self._give_way() or self._clock.monotonic() >= deadline)
        except FencedError:
            raise
        except AccessError as error:
            self._off = True
            self._say(f"retention is off for this attempt, and no checkpoint is deleted: {error}")
        except StoreError as error:
            self._say(f"retention failed and is tried again after the next save: {error}")
        except Exception as error:  # noqa: BLE001 - a fault must be heard of, and must not end a sound training
            _log.debug("in retention", exc_info=True)
            self._off = True
            self._say(f"retention failed and is off for this attempt: {type(error).__name__}: {error}")
        else:
            if done.held:
                self._say(f"retention retires and deletes nothing for now: {done.held}")
            elif done.complete:
                self._said = ""

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            _log.warning("unbroken: %s", text)
            self._report(text)
