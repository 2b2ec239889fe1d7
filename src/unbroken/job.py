"""The job file: what to run, where its state lives, and what a machine costs.

Imports pydantic and PyYAML, so the command imports this module only in verbs that were given a job file.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from unbroken.clock import parse_duration
from unbroken.errors import ConfigError, NotFoundError
from unbroken.every import parse_every


def _cadence(value: Any) -> Any:
    """A number of steps, a duration, or ``auto``, as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("write a number of steps, a duration such as 10min, or auto")
    if value.strip().isdigit():
        if int(value) < 1:
            raise ValueError("a cadence in steps is at least 1")
    elif value.strip().startswith("auto"):
        parse_every(value)
    else:
        parse_duration(value)
    return value.strip()


def _seconds(value: Any) -> Any:
    """A duration with its unit, as seconds."""
    if not isinstance(value, str):
        raise ValueError("write a duration with its unit, such as 2min or 30s")
    return parse_duration(value)


def _variable(value: Any) -> Any:
    """A value of the environment. YAML reads ``1`` as a number, which is clear, and ``no`` as false, which is not."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("write the value in quotes")
    return str(value)


Cadence = Annotated[str, BeforeValidator(_cadence)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
Variable = Annotated[str, BeforeValidator(_variable)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prices(_Strict):
    """What the machine costs an hour on each market."""

    on_demand: float = Field(gt=0)
    spot: float = Field(gt=0)
    currency: str = "USD"


class Job(_Strict):
    """A training to run. Durations are in seconds once read."""

    name: str = Field(min_length=1)
    run: str = Field(min_length=1)
    """URI of the run."""
    command: list[str] = Field(min_length=1)
    env: dict[str, Variable] = {}
    every: Cadence | None = None
    """Cadence that outranks the script's: a number of steps, a duration, or ``auto`` with or without options."""
    grace: Seconds | None = None
    """Seconds between a stop signal and the kill."""
    prices: Prices | None = None


def load_job(path: Path) -> Job:
    """Read a job file.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is no YAML, or a field is wrong; names the file, the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no job file {path}", kind="job-file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the job file {path} cannot be read ({error})", kind="job-file") from error
    node, value = _parse(path, text)
    if not isinstance(value, dict):
        raise ConfigError(
            f"the job file {path} is not a mapping of fields to values", kind="job-file", hint=_fields_hint(Job)
        )
    try:
        return Job.model_validate(value)
    except ValidationError as error:
        raise _explained(path, node, error) from error


def _parse(path: Path, text: str) -> tuple[yaml.Node | None, Any]:
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, None
            return node, loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line} is not YAML: {error.problem}", kind="job-yaml") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}", kind="job-yaml") from error


def _explained(path: Path, node: yaml.Node | None, error: ValidationError) -> ConfigError:
    """The first problem in full, the others counted. A misspelt field goes first: it makes another one missing."""
    problems = error.errors(include_url=False, include_context=False)
    problem = min(problems, key=lambda one: one["type"] != "extra_forbidden")
    place = problem["loc"]
    field = ".".join(str(part) for part in place)
    line = _line_of(node, place)
    where = f"{path}, line {line}" if line else str(path)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        return ConfigError(
            f"{where}: there is no field {field!r}{more}", kind="job-field", hint=_nearest(str(place[-1]), place[:-1])
        )
    if problem["type"] == "missing":
        return ConfigError(f"{where}: the field {field!r} is missing{more}", kind="job-field")
    message = problem["msg"].removeprefix("Value error, ")
    return ConfigError(
        f"{where}: {field}: {message}{more}", kind="job-field", hint=_value_hint(field, problem["input"])
    )


def _line_of(node: yaml.Node | None, place: tuple[int | str, ...]) -> int | None:
    """Line of the key at ``place``, or of the deepest thing above it that is there."""
    line = None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                return line
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _nearest(name: str, above: tuple[int | str, ...]) -> str:
    model = Prices if above == ("prices",) else Job
    near = difflib.get_close_matches(name.lower().replace("-", "_"), model.model_fields, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}? {_fields_hint(model)}" if near else _fields_hint(model)


def _fields_hint(model: type[BaseModel]) -> str:
    return f"The fields are {', '.join(model.model_fields)}"


def _value_hint(field: str, value: Any) -> str:
    if field == "command" and isinstance(value, str):
        return f"Write a list: command: [{', '.join(value.split())}]"
    return ""
