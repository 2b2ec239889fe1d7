"""The engine `local`: jobs on this machine, each under a supervisor that outlives the command that launched it."""

from unbroken.engine.face import Engine
from unbroken.engine.local.engine import LocalEngine
from unbroken.job import Job

__all__ = ["LocalEngine", "open_engine"]


def open_engine(_: Job | None = None) -> Engine:
    """The engine of this machine and user."""
    return LocalEngine()
