"""Errors, one class for each reaction a caller can have.

Every error has a ``kind`` (a short, stable word for the cause, such as ``"uri"``), a ``hint`` (what to do) and the
``exit_code`` with which a command ends that could not deal with it.
"""

from __future__ import annotations

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_IO = 74  # EX_IOERR of sysexits.h
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: come back later
EXIT_DENIED = 77  # EX_NOPERM
EXIT_CONFIG = 78  # EX_CONFIG: do not retry


class UnbrokenError(Exception):
    """Base of all errors of this package.

    Args:
        message: what happened, naming the thing and what was found.
        kind: a short, stable word for the cause; callers and tests may compare it.
        hint: what to do about it, or "" where nothing useful can be said.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, kind: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}. {self.hint}" if self.hint else message

    @property
    def message(self) -> str:
        """The message without the hint."""
        return str(self.args[0])


class ConfigError(UnbrokenError, ValueError):
    """The call or the job file must be mended; trying again is of no use."""

    exit_code = EXIT_CONFIG


class NotFoundError(UnbrokenError, LookupError):
    """Nothing is there."""

    exit_code = 10


class FencedError(UnbrokenError):
    """Another attempt owns this run; this one must write nothing more."""

    exit_code = 11


class DamagedError(UnbrokenError):
    """Stored bytes disagree with their digest or their length."""

    exit_code = 12


class FormatError(UnbrokenError):
    """Written by a version of the format that this program cannot read."""

    exit_code = 13


class MismatchError(UnbrokenError):
    """The checkpoint is sound but does not fit this program's state."""

    exit_code = 14


class StoreError(UnbrokenError):
    """The storage failed, after retries."""

    exit_code = EXIT_IO


class AccessError(StoreError):
    """The storage denied access."""

    exit_code = EXIT_DENIED


class DeadlineError(UnbrokenError):
    """The grace period was too short for the save; the previous commit stands."""

    exit_code = EXIT_INTERRUPTED


class ChildError(UnbrokenError):
    """The supervised command failed.

    Args:
        returncode: the exit status as :mod:`subprocess` gives it; negative for a signal.
    """

    def __init__(self, message: str, *, returncode: int, kind: str = "", hint: str = "") -> None:
        super().__init__(message, kind=kind, hint=hint)
        self.returncode = returncode


class Interrupted(SystemExit):
    """The provider takes the machine; progress is saved and the process leaves with 75.

    It is a :class:`SystemExit` so that ``except Exception`` in a training script cannot swallow it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_INTERRUPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message
