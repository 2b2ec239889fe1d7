"""What is wrong with a job file, in words, with the place and the nearest name that there is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from unbroken.errors import ConfigError
from unbroken.job.document import Document, Path, Problem
from unbroken.job.model import Job
from unbroken.job.values import describe

_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_CUSTOM = ("toleration", "queue", "conflict")


def config_error(name: str, problems: Sequence[Problem]) -> ConfigError:
    """One error that names all problems of the file ``name``, in the order of its lines."""
    ordered = sorted(problems, key=lambda one: (one.place.line, one.place.column) if one.place else (0, 0))
    if len(ordered) == 1:
        return ConfigError(f"{_where(name, ordered[0])}: {ordered[0].text}", kind="job", hint=ordered[0].hint)
    lines = [f"  {_where(name, one)}: {one.text}{f'. {one.hint}' if one.hint else ''}" for one in ordered]
    return ConfigError("\n".join([f"{name} has {len(ordered)} things to mend", *lines]), kind="job")


def explain(document: Document, error: ValidationError) -> list[Problem]:
    """The problems that validation found."""
    return [_problem(document, one) for one in error.errors(include_url=False)]


def _where(name: str, problem: Problem) -> str:
    place = problem.place
    return f"{name}, line {place.line}, column {place.column}" if place else name


def _problem(document: Document, found: ErrorDetails) -> Problem:
    path: Path = tuple(part for part in found["loc"] if part != "[key]")
    context = found.get("ctx", {})
    path += tuple(context.get("at", ()))
    place = document.place(path)
    name = ".".join(str(part) for part in path)
    if found["type"] == "extra_forbidden":
        return Problem(place, f"there is no field {name!r}", _nearest(path))
    if found["type"] == "missing":
        return Problem(place, f"the field {name!r} is missing", _about(path))
    text, hint = _words(found, context)
    return Problem(place, f"{name}: {text}" if name else text, hint or _value_hint(path, found["input"]))


def _words(found: ErrorDetails, context: dict[str, Any]) -> tuple[str, str]:
    kind, value = found["type"], found["input"]
    if kind == "value_error":
        error = context["error"]
        return (error.message, error.hint) if isinstance(error, ConfigError) else (str(error), "")
    if kind in _CUSTOM:
        return found["msg"], context.get("hint", "")
    if kind in _EXPECTED:
        return f"found {describe(value)} where {_EXPECTED[kind]} is needed", ""
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", context["expected"])
        near = difflib.get_close_matches(str(value), words, n=1, cutoff=0.5)
        start = f"Did you mean {near[0]!r}? " if near else ""
        return f"found {describe(value)}", f"{start}It is one of {', '.join(words)}"
    if kind == "string_pattern_mismatch":
        return f"found {describe(value)}, which does not have the form {context['pattern']}", ""
    return f"found {describe(value)}: {found['msg'][0].lower()}{found['msg'][1:]}", ""


def _value_hint(path: Path, value: Any) -> str:
    if path == ("command",) and isinstance(value, str):
        return f"Write a list: command: [{', '.join(value.split())}], or write script: in place of command:"
    if path == ("name",):
        return "Use lower-case letters, digits and dashes, 40 at most"
    if isinstance(value, bool | int | float) or value is None:
        return _about(path)
    if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
        return "Write true or false"
    return _about(path)


def _about(path: Path) -> str:
    """What the schema says about a field, in its first sentence."""
    model = _model_at(path[:-1])
    field = model.model_fields.get(str(path[-1])) if model and path else None
    text = (field.description or "") if field else ""
    return text.strip().rstrip(".").replace("`", "").split("\n")[0]


def _nearest(path: Path) -> str:
    model = _model_at(path[:-1]) or Job
    name = str(path[-1]).lower().replace("-", "_")
    near = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    elsewhere = next((place for place, field in _all_fields(Job, ()) if field == name), None)
    if elsewhere is not None:
        return f"It stands in {'.'.join(elsewhere)!r}" if elsewhere else "It stands at the top of the file"
    return f"The fields are {', '.join(model.model_fields)}"


def _model_at(path: Path) -> type[BaseModel] | None:
    model: type[BaseModel] = Job
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)


def _all_fields(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for name in model.model_fields:
        yield path, name
    for name, field in model.model_fields.items():
        if (inner := _model_in(field.annotation)) is not None:
            yield from _all_fields(inner, (*path, name))
