"""Several nodes on one machine that start together, end together and are started again together."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from unbroken.clock import SYSTEM_CLOCK, Clock, format_duration
from unbroken.engine.launch import Launch, Watcher
from unbroken.engine.placement import Anywhere, Placement, Seat
from unbroken.engine.settings import AgentSettings
from unbroken.errors import EXIT_FINISHED, EXIT_INTERRUPTED, AccessError, ChildError
from unbroken.notice.grace import grace_from

_LOOK_SECONDS = 0.01
_LEAVE_SECONDS = 15.0
"""How long an agent may need beyond its grace period until it has left."""


@dataclass(frozen=True)
class Node:
    """What one node runs under its agent, and what its environment has besides this process's."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class LocalGang:
    """Runs a training of several nodes on this machine, each under an agent of its own, until its run is finished.

    The nodes live and die together, as the pods of a JobSet do:

    - One agent left with 0: the others are waited for; they may have something left to do.
    - One left with 75: the interruption stops all ranks at the same step, so the others leave by themselves. Who has
      not left ``patience`` seconds later is told to.
    - One was lost without notice (a signal killed it), or failed: the others are told to leave at once. Otherwise
      their agents would start their part again in place, and it would wait for ranks that never come.
    - To be told means SIGTERM for the agent, and SIGKILL for whatever is left of the node ``patience`` seconds later.
    - When all are gone: all left with 0, and the run is finished; or one left with a code that means "do not start
      again", and that is an error; or all of them are started again.

    It owns every process that it starts: when :meth:`run` returns or raises, whatever the reason, none of them lives.

    Args:
        nodes: asked before each start what to run, for a rendezvous must have a fresh port each time.
        settings: for all agents.
        name: of the training, for messages.
        logs: folder for what each launch prints, ``PREFIX-1-node-0.log`` and so on, and ``PREFIX-1.log`` where there
            is one node; made where it is missing.
        prefix: of the logs' names.
        max_starts: how often all of them may be started.
        timeout: seconds for all of it.
        patience: seconds; None for what an agent may need with the grace period of the settings.
        placement: where each start goes, and when it must leave.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[Node]],
        settings: AgentSettings,
        *,
        name: str,
        logs: Path,
        prefix: str = "agent",
        max_starts: int = 100,
        timeout: float = float("inf"),
        patience: float | None = None,
        placement: Placement | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._placement = placement or Anywhere()
        self._nodes = nodes
        self._settings = settings
        self._name = f"`{name}`"
        self._logs = logs
        self._prefix = prefix
        self._max_starts = max_starts
        self._timeout = timeout
        self._patience = grace_from(settings.grace) + _LEAVE_SECONDS if patience is None else patience
        self._clock = clock

    def run(self, watcher: Watcher) -> list[Launch]:
        """Start the nodes until all agents say that the run is finished, or the placement wants no start any more.

        Returns:
            the launches, all ended, in the order of starts and nodes; where the run is finished, those of the last
            start left with 0.

        Raises:
            AccessError: the folder for the logs cannot be made.
            ChildError: an agent left with a code that means "do not start again" (kind ``exit``), or there were too
                many starts (kind ``starts``), or the time is up (kind ``timeout``).
            UnbrokenError: a process would not die (kind ``survivor``).
        """
        self._make_logs()
        deadline = self._clock.monotonic() + self._timeout
        launches: list[Launch] = []
        # A short path: it must fit into the address of a Unix socket.
        with tempfile.TemporaryDirectory(prefix="unbroken-") as folder:
            for number in count(1):
                seat = self._placement.next_seat()
                if seat is None:
                    break
                together = self._start(number, seat, Path(folder), watcher, deadline)
                launches += together
                if all(launch.returncode == EXIT_FINISHED for launch in together):
                    break
                self._check_again(together)
        return launches

    def _make_logs(self) -> None:
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AccessError(
                f"the folder {self._logs} for logs cannot be made ({error.strerror})", kind="folder",
                hint="Work in a folder that this user may write",
            ) from error  # fmt: skip

    def _start(self, number: int, seat: Seat, folder: Path, watcher: Watcher, deadline: float) -> list[Launch]:
        """Start all nodes once and follow them until none of them lives."""
        nodes = self._nodes()
        settings = self._settings
        if seat.pool:
            settings = replace(settings, pool=seat.pool, price=seat.price, currency=seat.currency)
        launches: list[Launch] = []
        with ExitStack() as owned:
            for index, node in enumerate(nodes):
                place = f"{number}-node-{index}" if len(nodes) > 1 else str(number)
                launch = Launch(
                    number,
                    [*settings.arguments(), "--", *node.command],
                    {**os.environ, **node.environment},
                    log=self._logs / f"{self._prefix}-{place}.log",
                    runtime_dir=folder / place,
                    clock=self._clock,
                    node=index,
                    pool=settings.pool,
                )
                owned.callback(launch.kill)
                launches.append(launch)
                watcher.started(launch)
            self._follow(launches, watcher, deadline)
        return launches

    def _follow(self, launches: Sequence[Launch], watcher: Watcher, deadline: float) -> None:
        parting = Parting(launches, self._patience, self._clock)
        living, told = list(launches), False
        while living:
            number = None if told else self._placement.leave_now()
            if number is not None:
                told = True
                parting.tell(number)
            for launch in tuple(living):
                if launch.returncode is None:
                    watcher.watch(launch)
                else:
                    launch.kill()  # what its agent left behind is gone with the node
                    living.remove(launch)
                    watcher.ended(launch)
            parting.press()
            if living and self._clock.monotonic() > deadline:
                raise ChildError(
                    f"{self._name} was not finished after {format_duration(self._timeout)}",
                    returncode=-9, kind="timeout", hint=f"Allow more time with --timeout. {_seen(living[0])}",
                )  # fmt: skip
            if living:
                self._clock.sleep(_LOOK_SECONDS)

    def _check_again(self, launches: Sequence[Launch]) -> None:
        """Return where the contract allows another start of all of them."""
        for launch in sorted(launches, key=lambda one: one.ended_at or 0.0):
            code = launch.returncode or 0
            if code > 0 and code != EXIT_INTERRUPTED:
                what = f"node {launch.node} of {self._name}" if len(launches) > 1 else self._name
                raise ChildError(f"{what} ended with {code}", returncode=code, kind="exit", hint=_seen(launch))
        last = next(launch for launch in launches if launch.returncode != EXIT_FINISHED)
        if last.number >= self._max_starts:
            raise ChildError(
                f"{self._name} is not finished after {last.number} starts", returncode=last.returncode or 0,
                kind="starts", hint=_seen(last),
            )  # fmt: skip


class Parting:
    """Ends the rest of a start once one of its nodes is gone, by the rule of :class:`LocalGang`.

    Args:
        launches: all nodes of the start.
        patience: seconds for leaving unasked after an interruption, and again for leaving when told.
    """

    def __init__(self, launches: Sequence[Launch], patience: float, clock: Clock) -> None:
        self._launches = launches
        self._patience = patience
        self._clock = clock
        self._first_gone_at: float | None = None
        self._told_at: float | None = None

    def press(self) -> None:
        """Do what is due now; to be called again and again."""
        codes = [launch.returncode for launch in self._launches]
        gone = {code for code in codes if code not in (None, EXIT_FINISHED)}
        if None not in codes or (not gone and self._told_at is None):
            return
        now = self._clock.monotonic()
        if self._first_gone_at is None:
            self._first_gone_at = now
        if self._told_at is None and (gone != {EXIT_INTERRUPTED} or now >= self._first_gone_at + self._patience):
            self.tell(signal.SIGTERM)
        if self._told_at is not None and now >= self._told_at + self._patience:
            for launch in self._living():
                launch.kill()

    def tell(self, number: int) -> None:
        """Send this signal to the agents that live, and SIGKILL to what is left of them ``patience`` seconds later."""
        self._told_at = self._clock.monotonic()
        for launch in self._living():
            launch.signal(number)

    def _living(self) -> list[Launch]:
        return [launch for launch in self._launches if launch.returncode is None]


def _seen(launch: Launch) -> str:
    tail = launch.log_tail()
    return f"It printed (all of it in {launch.log}):\n{tail}" if tail else f"It printed nothing ({launch.log})"
