"""A job as plain JSON values, for whoever runs it later."""

from __future__ import annotations

from typing import Any

from unbroken.job.model import Job
from unbroken.job.values import IN_BASE_UNITS


def store_job(job: Job) -> dict[str, Any]:
    """All of its fields, durations in seconds and sizes in bytes."""
    return job.model_dump(mode="json")


def stored_job(document: dict[str, Any]) -> Job:
    """The job that :func:`store_job` made this of.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return Job.model_validate(document, context=IN_BASE_UNITS)
