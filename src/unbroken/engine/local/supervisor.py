"""Runs one job on this machine until it is finished, failed or told to stop: `python -m ...supervisor FOLDER`.

It is the owner of every process of the job. SIGTERM tells it to stop: the agents save and leave, and are not started
again.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.engine.face import Place, State
from unbroken.engine.gang import LocalGang, Node
from unbroken.engine.launch import Launch
from unbroken.engine.local.folder import JOB_VARIABLE, JobFolder, Written
from unbroken.engine.local.market import market_placement
from unbroken.engine.placement import Anywhere, Placement, Seat
from unbroken.engine.settings import AgentSettings
from unbroken.engine.torchrun import Layout
from unbroken.errors import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_INTERRUPTED,
    ChildError,
    ConfigError,
    NotFoundError,
    UnbrokenError,
)
from unbroken.job import Job, agent_environment, agent_settings, stored_job
from unbroken.notice.choice import NOTICES_VARIABLE

_MOST_STARTS = 1_000_000
"""The agents stop by themselves where starts bring no progress; interruptions alone have no bound."""
_KEPT_PLACES = 200


class Stoppable:
    """A placement that gives no seat any more once it was told to stop, and has what runs leave."""

    def __init__(self, inner: Placement, told: threading.Event) -> None:
        self._inner = inner
        self._told = told

    def next_seat(self) -> Seat | None:
        return None if self._told.is_set() else self._inner.next_seat()

    def leave_now(self) -> int | None:
        return signal.SIGTERM if self._told.is_set() else self._inner.leave_now()


class Scribe:
    """Writes down what the gang does."""

    def __init__(self, folder: JobFolder, told: threading.Event) -> None:
        before = folder.written()
        self._folder, self._told = folder, told
        self._places = [_left_behind(place) for place in before.places] if before else []
        self._at: dict[Launch, int] = {}

    def started(self, launch: Launch) -> None:
        name = f"{launch.log.parent.name}/{launch.log.stem}"
        self._at[launch] = len(self._places)
        self._places.append(
            Place(name, "running", launch.node, socket.gethostname(), launch.pool, began_at=launch.started_at)
        )
        self.write(State.RUNNING)

    def watch(self, launch: Launch) -> None:
        """Nothing is to be done while it runs."""

    def ended(self, launch: Launch) -> None:
        place = self._places[self._at[launch]]
        self._places[self._at[launch]] = _ended(place, launch)
        self.write(State.RUNNING if any(place.state == "running" for place in self._places) else State.WAITING)

    def write(self, state: State, reason: str = "") -> None:
        self._folder.write(Written(state, reason, self._places[-_KEPT_PLACES:], self._told.is_set()))


def _left_behind(place: Place) -> Place:
    """What a supervisor that was killed had running was ended before this one began."""
    if place.state != "running":
        return place
    return replace(place, state="ended", reason="ended with its supervisor, which was killed")


def _ended(place: Place, launch: Launch) -> Place:
    code = launch.returncode
    words = {EXIT_FINISHED: "finished", EXIT_INTERRUPTED: "interrupted; its progress is saved"}
    reason = f"killed by signal {-code}" if code is not None and code < 0 else words.get(code or 0, "failed")
    return Place(place.name, "ended", place.node, place.host, place.pool, place.began_at, launch.ended_at, code, reason)


def gang_of(job: Job, logs: Path, placement: Placement, clock: Clock = SYSTEM_CLOCK) -> LocalGang:
    """The job's nodes, all on this machine.

    Raises:
        ConfigError: it cannot be laid out.
    """
    layout = Layout(job.ranks.nodes, job.ranks.per_node)
    layout.check(job.argv)
    told = agent_settings(job)
    notices = told.pop("notices", "")
    environment = agent_environment(job) | ({NOTICES_VARIABLE: notices} if notices else {})

    def nodes() -> list[Node]:
        return list(layout.lay_out(job.argv, [environment] * layout.nodes))

    return LocalGang(
        nodes, AgentSettings(**told), name=job.name, logs=logs, max_starts=_MOST_STARTS, placement=placement,
        clock=clock,
    )  # fmt: skip


def supervise(folder: JobFolder, output: TextIO, clock: Clock = SYSTEM_CLOCK) -> int:
    """Run the job of this folder; the exit code says how it ended, and ``standing.json`` in words."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever launched it has a terminal, and not we
    os.environ[JOB_VARIABLE] = str(folder.path)
    definition = folder.definition()
    if definition is None:
        raise NotFoundError(f"there is no job in {folder.path}", kind="job")
    scribe = Scribe(folder, told)
    scribe.write(State.WAITING)
    try:
        _enter(definition.directory)
        job = stored_job(definition.job)
        inner: Placement = Anywhere()
        if definition.market is not None:
            inner = market_placement(job, definition.market, told, output, clock)
        launches = gang_of(job, folder.next_logs(), Stoppable(inner, told), clock).run(scribe)
    except ChildError as error:
        print(f"{error.message}\n{error.hint}", file=output, flush=True)
        scribe.write(State.FAILED, error.message)
        return EXIT_FAILED
    except UnbrokenError as error:
        print(f"{error.message}\n{error.hint}", file=output, flush=True)
        scribe.write(State.FAILED, f"{error.message}. {error.hint}" if error.hint else error.message)
        return error.exit_code
    done = bool(launches) and launches[-1].returncode == EXIT_FINISHED
    over = done or not told.is_set()  # a placement ends a run that is finished already
    scribe.write(State.FINISHED if over else State.STOPPED)
    return EXIT_FINISHED if over else EXIT_INTERRUPTED


def _enter(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as error:
        raise ConfigError(
            f"the job was launched in {directory}, which cannot be entered ({error.strerror})", kind="directory",
            hint="Launch it where its files are, with --replace",
        ) from error  # fmt: skip


def main() -> int:
    path = Path(sys.argv[1])
    folder = JobFolder(path.parent, path.name)
    with folder.held() as ours:
        if not ours:
            return EXIT_FINISHED  # another supervisor was quicker
        return supervise(folder, sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
