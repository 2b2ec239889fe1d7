"""Which rules look at which document, and which findings a comment takes away."""

from __future__ import annotations

import re

from unbroken.lint.command_rules import command_rules
from unbroken.lint.finding import Finding
from unbroken.lint.job_rules import job_rules, jobset_rules
from unbroken.lint.look import Look
from unbroken.lint.pod_rules import looks_like_training, pod_rules
from unbroken.lint.pool_rules import pool_rules
from unbroken.lint.reading import Manifest, Path, read_manifests

KINDS = ("Job", "CronJob", "JobSet", "Pod", "Deployment", "StatefulSet", "NodePool")
_IGNORE = re.compile(r"#\s*unbroken-lint:\s*ignore\[([^\]]*)\]")


def lint_text(text: str, name: str, *, save_seconds: float | None = None) -> list[Finding]:
    """The findings in a file of manifests, in the order of their lines.

    Args:
        name: of the file, for the findings.
        save_seconds: how long this training's save takes, in seconds; None where it was not measured.

    Raises:
        ConfigError: the text is not YAML, or unfolds to too much.
    """
    found = [finding for manifest in _documents(text, name) for finding in _findings(manifest, save_seconds)]
    lines = text.splitlines()
    return sorted((one for one in found if not _ignored(one, lines)), key=lambda one: (one.line, one.rule))


def count_known(text: str, name: str) -> int:
    """How many documents the rules look at: those of :data:`KINDS`, of pods and servers the ones that train."""
    return sum(_is_known(Look(manifest)) for manifest in _documents(text, name))


def _is_known(look: Look) -> bool:
    kind = look.get("kind")
    if kind == "Pod":
        return looks_like_training(look, ())
    if kind in ("Deployment", "StatefulSet"):
        return looks_like_training(look, ("spec", "template"))
    return kind in KINDS


def _documents(text: str, name: str) -> list[Manifest]:
    documents = []
    for manifest in read_manifests(text, name):
        items = manifest.get("items") if manifest.get("kind") == "List" else None
        if not isinstance(items, list):
            documents.append(manifest)
            continue
        for index, value in enumerate(items):
            part = Manifest(name)
            part.value = value
            part.lines = {path[2:]: line for path, line in manifest.lines.items() if path[:2] == ("items", index)}
            documents.append(part)
    return documents


def _findings(manifest: Manifest, save_seconds: float | None) -> list[Finding]:
    look = Look(manifest)
    kind = manifest.get("kind")
    pod: Path = ("spec", "template")
    if kind == "Job":
        job_rules(look, ())
        pod_rules(look, pod, save_seconds)
        command_rules(look, pod)
    elif kind == "CronJob":
        job_rules(look, ("spec", "jobTemplate"))
        pod = ("spec", "jobTemplate", "spec", "template")
        pod_rules(look, pod, save_seconds)
        command_rules(look, pod)
    elif kind == "JobSet":
        for job in jobset_rules(look):
            pod_rules(look, (*job, "spec", "template"), save_seconds)
            command_rules(look, (*job, "spec", "template"))
    elif kind == "Pod" and looks_like_training(look, ()):
        look.add("bare-pod", ("kind",), "A Pod of its own is not started again once it was interrupted", "kind: Job")
        pod_rules(look, (), save_seconds)
    elif kind in ("Deployment", "StatefulSet") and looks_like_training(look, pod):
        why = f"A {kind} starts a finished training again for ever, and has no podFailurePolicy"
        look.add("misplaced-training", ("kind",), why, "kind: Job")
    elif kind == "NodePool":
        pool_rules(look)
    return look.found


def _ignored(finding: Finding, lines: list[str]) -> bool:
    at = finding.line - 1
    here = lines[at] if at < len(lines) else ""
    above = lines[at - 1] if 0 < at <= len(lines) and lines[at - 1].lstrip().startswith("#") else ""
    marks = _IGNORE.findall(f"{here}\n{above}")
    return any(finding.rule in [word.strip() for word in mark.split(",")] for mark in marks)
