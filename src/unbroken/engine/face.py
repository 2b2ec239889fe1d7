"""What every engine can do, and what it says of a job: all that `launch`, `status`, `logs` and `stop` know of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from unbroken.job import Job


class State(StrEnum):
    """How a job stands with its engine. What the training has reached is in the run's journal."""

    ABSENT = "absent"
    """The engine knows nothing of it."""
    WAITING = "waiting"
    """It was asked for, and nothing runs: there is no machine yet, or a policy waits for one."""
    RUNNING = "running"
    STOPPING = "stopping"
    """It was told to stop, and something still runs."""
    STOPPED = "stopped"
    """Told to stop, and nothing runs; `launch` goes on with it."""
    FINISHED = "finished"
    FAILED = "failed"
    """It ended with a code that means "do not start again", or too often."""


@dataclass(frozen=True)
class Place:
    """One node's part of one start: a process, a pod, an instance. Moments are wall-clock seconds."""

    name: str
    """As the platform calls it: a pod's name, an instance's id, `agent-2-node-0`."""
    state: str
    """`waiting`, `running` or `ended`."""
    node: int = 0
    """Which node of the training, from 0."""
    host: str = ""
    """As the journal calls the attempt's machine; "" where it is not known."""
    pool: str = ""
    """Type/zone/market; "" where it is not known."""
    began_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    """Of the agent; negative for a signal."""
    reason: str = ""
    """Why it waits or ended, in the platform's words."""


@dataclass(frozen=True)
class Standing:
    """A job at one moment, by its engine."""

    engine: str
    """`local`, `kubernetes` or `ec2`."""
    name: str
    """Of the job."""
    where: str
    """Where the engine keeps it: a folder, context and namespace, a region."""
    state: State
    reason: str = ""
    """Why it is in this state; "" where that says all."""
    places: Sequence[Place] = ()
    """Oldest first; those that the platform has forgotten are known from the journal alone."""


class Engine(Protocol):
    """A scheduler that exists, asked to run jobs. All of it can be said again without harm.

    Every method raises AccessError where the platform refuses, and UnbrokenError (kind ``engine``) where it does not
    answer in time.
    """

    def launch(self, job: Job, *, replace: bool = False) -> Standing:
        """Have the job run. One that runs as asked stays as it is; one that was stopped goes on.

        Args:
            replace: stop and replace one of the same name that was launched with another definition.

        Raises:
            ConfigError: the engine cannot run it, or (kind ``changed``) one of the same name was launched with another
                definition.
        """

    def status(self, name: str) -> Standing:
        """How it stands. An unknown job is ``absent``, not an error."""

    def logs(self, name: str, *, node: int = 0, follow: bool = False) -> Iterator[str]:
        """What a node printed, line by line without line ends, the oldest start that is still known first.

        Args:
            node: whose.
            follow: go on with what comes, over interruptions, until the job is finished, failed or stopped.

        Raises:
            NotFoundError: the engine knows no such job, or it has nothing of that node.
        """

    def stop(self, name: str, *, timeout: float) -> Standing:
        """Have it saved and end, and not started again; returns when nothing runs any more.

        Args:
            timeout: seconds to wait for the end.

        Raises:
            NotFoundError: the engine knows no such job.
            UnbrokenError: something still runs after ``timeout`` (kind ``timeout``). It stays told to stop.
        """
