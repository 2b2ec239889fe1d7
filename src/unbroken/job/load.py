"""Reading a job file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unbroken.errors import ConfigError, NotFoundError
from unbroken.job import document as documents
from unbroken.job.document import Document, Place, Problem
from unbroken.job.model import Job
from unbroken.job.problems import config_error, explain

_LARGEST = 1_000_000
_AS_TYPED = (
    ("env",),
    ("command",),
    ("ec2", "tags"),
    ("kubernetes", "labels"),
    ("kubernetes", "annotations"),
    ("kubernetes", "node_selector"),
    ("kubernetes", "termination_handler", "node_selector"),
)
"""Where values go on to others as text: ``1e-3`` must not become ``0.001``, nor ``true`` ``True``."""


def load_job(path: Path) -> Job:
    """Read a job file.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it cannot be read, is no YAML, or has wrong fields; names all of them with line and column.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        text = raw.decode("utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no job file {path}", kind="job-file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the job file {path} cannot be read ({error})", kind="job-file") from error
    if len(raw) > _LARGEST:
        raise ConfigError(f"{path} is larger than any job file ({_LARGEST} bytes)", kind="job-file")
    return read_job(text, str(path))


def read_job(text: str, name: str = "job.yaml") -> Job:
    """Read the text of a job file; ``name`` is for errors.

    Raises:
        ConfigError: as :func:`load_job`.
    """
    document = documents.read_document(text)
    if not isinstance(document.value, dict):
        if not document.problems:
            place = Place(1, 1) if document.value is not None else None
            hint = f"The fields are {', '.join(Job.model_fields)}"
            document.problems.append(Problem(place, "this is not a mapping of fields to values", hint))
        raise config_error(name, document.problems)
    for path in _AS_TYPED:
        _as_typed(document, path)
    try:
        job = Job.model_validate(document.value)
    except ValidationError as error:
        raise config_error(name, [*document.problems, *explain(document, error)]) from error
    if document.problems:
        raise config_error(name, document.problems)
    return job


def _as_typed(document: Document, path: tuple[str, ...]) -> None:
    """Put what was typed in the place of what YAML makes of it."""
    holder: Any = document.value
    for part in path:
        if not isinstance(holder, dict):
            return
        holder = holder.get(part)
    if not isinstance(holder, dict | list):
        return
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        if (*path, key) in document.texts:
            holder[key] = document.texts[(*path, key)]
