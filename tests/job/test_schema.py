"""The schema and the page of the job file are those of the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from unbroken.errors import ConfigError
from unbroken.job import job_schema, read_job

ROOT = Path(__file__).parents[2]


def fields_of(schema: dict[str, Any], node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, field in node["properties"].items():
        yield prefix + name
        below = [field, *field.get("anyOf", []), *([field["items"]] if "items" in field else [])]
        for each in below:
            if "$ref" in each:
                more = "[]." if field.get("type") == "array" else "."
                yield from fields_of(schema, schema["$defs"][each["$ref"].rsplit("/", 1)[-1]], prefix + name + more)


def test_the_file_for_editors_is_the_schema_of_the_model() -> None:
    """Made anew by: unbroken render schema > docs/job.schema.json."""
    assert (ROOT / "docs/job.schema.json").read_text() == job_schema()


def test_the_page_names_every_field_and_no_other() -> None:
    schema = json.loads(job_schema())
    table = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/job.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(fields_of(schema, schema))


def test_the_example_of_the_page_and_the_file_for_kubernetes_are_valid_by_both() -> None:
    page = (ROOT / "docs/job.md").read_text()
    texts = [
        re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1],  # type: ignore[index]
        (ROOT / "examples/kubernetes/job.yaml").read_text(),
    ]
    for text in texts:
        read_job(text)
        jsonschema.validate(yaml.safe_load(text), json.loads(job_schema()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"comand": ["a"]}, {"every": []}, {"ranks": {"nodes": 0}}, {"grace": "soon"}, {"resources": {"memory": "much"}},
        {"pools": [{"zone": "a"}]}, {"pools": [{"instance_type": "t", "market": "black"}]}, {"name": "Not this"},
        {"on_lost_node": "cry"}, {"kubernetes": {"user": 0}}, {"script": "b.py"},
    ],
)  # fmt: skip
def test_what_the_model_refuses_the_schema_does_too(wrong: dict[str, Any]) -> None:
    data: dict[str, Any] = {"name": "a", "run": "s3://b/a", "command": ["a"]}
    jsonschema.validate(data, json.loads(job_schema()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data | wrong, json.loads(job_schema()))
    with pytest.raises(ConfigError):
        read_job(yaml.safe_dump(data | wrong))
