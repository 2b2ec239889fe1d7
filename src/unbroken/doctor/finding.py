"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass

from unbroken.errors import EXIT_CONFIG, StoreError, UnbrokenError

SEVERITIES = ("ok", "note", "warning", "error")
"""From none to worst. A training would not run with an error, and runs worse than it could with a warning."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Args:
        severity: one of :data:`SEVERITIES`.
        found: what was seen.
        why: why it matters; "" where nothing is wrong.
        todo: what to do about it, or "".
        exit_code: of an error: what the command ends with (see :mod:`unbroken.errors`); else 0.
        check: the name of the check; set by whoever runs it.
    """

    severity: str
    found: str
    why: str = ""
    todo: str = ""
    exit_code: int = 0
    check: str = ""


def sound(found: str) -> Finding:
    """All is well."""
    return Finding("ok", found)


def note(found: str, why: str = "", todo: str = "") -> Finding:
    """Nothing is wrong, or nothing could be seen."""
    return Finding("note", found, why, todo)


def warning(found: str, why: str, todo: str) -> Finding:
    """A training runs, and worse than it could."""
    return Finding("warning", found, why, todo)


def failure(found: str, why: str, todo: str, exit_code: int = EXIT_CONFIG) -> Finding:
    """A training would not run."""
    return Finding("error", found, why, todo, exit_code)


def failure_of(error: UnbrokenError, why: str) -> Finding:
    """An error that a training would meet as well."""
    todo = error.hint or ("Check the network and the endpoint" if isinstance(error, StoreError) else "")
    return failure(error.message, why, todo, error.exit_code)
