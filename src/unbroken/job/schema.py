"""The job file's JSON Schema, for editors."""

from __future__ import annotations

import json

from unbroken.job.model import Job


def job_schema() -> str:
    """The schema as text; the same for the same version of this package."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}
    schema["title"] = "Unbroken job file"
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
