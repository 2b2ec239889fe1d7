"""What the checks look at: a run, a training, and this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unbroken.clock import SYSTEM_CLOCK, Clock
from unbroken.notice.choice import NAMES, Choice
from unbroken.notice.grace import DEFAULT_GRACE, grace_from

if TYPE_CHECKING:
    from unbroken.job import Job

_SHM = 1 << 30
_SCRATCH = 1 << 30


@dataclass(frozen=True)
class Place:
    """Where a training is to run, and what it needs there.

    Args:
        uri: of the run; "" where none is known.
        argv: what starts the training, word by word, as for one rank.
        ranks: of all nodes together.
        nodes: machines.
        state: bytes of what a node saves; None where nobody said.
        memory: bytes of host memory that the training takes for itself; None where nobody said.
        shm, scratch: bytes that ``/dev/shm`` and the folder for temporary files should have.
        grace: seconds from a stop signal to the kill.
        notices: whom to hear of interruptions; None takes the environment's choice.
        environment: variables of the training, added to this process's own.
        root: of the file system; for tests.
        folder: for temporary files.
        clock: what tells the time.
    """

    uri: str = ""
    argv: Sequence[str] = ("python",)
    ranks: int = 1
    nodes: int = 1
    state: int | None = None
    memory: int | None = None
    shm: int = _SHM
    scratch: int = _SCRATCH
    grace: float = DEFAULT_GRACE
    notices: Choice | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    root: Path = Path("/")
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    clock: Clock = SYSTEM_CLOCK

    @classmethod
    def of_job(cls, job: Job) -> Place:
        """The place that a job file describes.

        Raises:
            ConfigError: the environment's grace period, which counts where the file has none, is no duration.
        """
        needs = job.resources
        return cls(
            uri=job.run,
            argv=job.argv,
            ranks=job.ranks.total,
            nodes=job.ranks.nodes,
            state=needs.state,
            memory=needs.memory,
            shm=needs.shm,
            scratch=needs.scratch,
            grace=grace_from() if job.grace is None else job.grace,
            notices=Choice(frozenset(NAMES) - frozenset(job.notices.off)) if job.notices.off else None,
            environment=job.env,
        )
