"""A kubelet and a Job controller for one document, with real processes on this machine.

It obeys what the document says and nothing else: exec form, variables, SIGTERM to process 1, the grace period, SIGKILL
to all, and the decisions of ``podFailurePolicy`` and ``backoffLimit`` as Kubernetes documents them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Disruption = Literal["evict", "lose"]
Watch = Callable[[subprocess.Popen[bytes]], Disruption | None]
"""Waits until something is to happen to the pod, or it has ended (None)."""
_MOST_PODS = 10
_PATIENCE = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a Job ended: its condition and reason, and the exit code of each pod in the order of their starts."""

    condition: str
    reason: str
    codes: list[int]


def run_job(document: Mapping[str, Any], watch: Watch, output: Path) -> Outcome:
    """Run a Job to its end.

    Args:
        watch: called for each pod that started.
        output: file to which what the pods print is added.
    """
    spec = document["spec"]
    assert document["kind"] == "Job"
    assert spec["podReplacementPolicy"] == "Failed"  # each pod is gone before the next one starts, as here
    codes: list[int] = []
    counted = 0
    while len(codes) < _MOST_PODS:
        code, disrupted = _run_pod(spec["template"]["spec"], watch, output)
        codes.append(code)
        if code == 0:
            return Outcome("Complete", "", codes)
        action = _decide(spec["podFailurePolicy"]["rules"], code, disrupted=disrupted)
        if action == "FailJob":
            return Outcome("Failed", "PodFailurePolicy", codes)
        counted += action == "Count"
        if counted > spec["backoffLimit"]:
            return Outcome("Failed", "BackoffLimitExceeded", codes)
    raise AssertionError(f"{_MOST_PODS} pods ended with {codes}; they printed:\n{output.read_text()}")


def _decide(rules: list[dict[str, Any]], code: int, *, disrupted: bool) -> str:
    """The action of the first rule that holds; what no rule speaks of counts."""
    for rule in rules:
        if "onExitCodes" in rule:
            holds = (code in rule["onExitCodes"]["values"]) == (rule["onExitCodes"]["operator"] == "In")
        else:
            holds = disrupted and any(
                one["type"] == "DisruptionTarget" and one["status"] == "True" for one in rule["onPodConditions"]
            )
        if holds:
            return str(rule["action"])
    return "Count"


def _run_pod(spec: Mapping[str, Any], watch: Watch, output: Path) -> tuple[int, bool]:
    """Exit code as a container runtime gives it, and whether the pod was disrupted."""
    assert spec["restartPolicy"] == "Never"
    (container,) = spec["containers"]
    environment = _environment(container.get("env", []))
    command = [_expanded(word, environment) for word in container["command"]]
    with output.open("ab") as log:
        pod = subprocess.Popen(
            command, env={**_image(), **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        disruption = watch(pod)
        if disruption == "evict":
            _evict(pod, container, float(spec["terminationGracePeriodSeconds"]))
        elif disruption == "lose":
            os.killpg(pod.pid, signal.SIGKILL)
        code = pod.wait(_PATIENCE)
    finally:
        _kill_all(pod)
    return (code if code >= 0 else 128 - code), disruption is not None


def _evict(pod: subprocess.Popen[bytes], container: Mapping[str, Any], grace: float) -> None:
    assert "preStop" not in container.get("lifecycle", {})  # it would have to run first, in the grace period
    pod.terminate()
    try:
        pod.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(pod.pid, signal.SIGKILL)


def _kill_all(pod: subprocess.Popen[bytes]) -> None:
    """The container is gone when process 1 is."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pod.pid, signal.SIGKILL)
    pod.wait(_PATIENCE)


def _environment(entries: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries:
        value = entry.get("value", "127.0.0.1")  # of the downward API
        found[entry["name"]] = _expanded(value, found)
    return found


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` is replaced where the name is known, ``$$`` is one dollar sign."""
    return re.sub(
        r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)",
        lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0]),
        text,
    )


def _image() -> dict[str, str]:
    """What an image would have: this environment's programs, and where their libraries are."""
    kept = {name: value for name, value in os.environ.items() if name in ("PYTHONPATH", "LD_LIBRARY_PATH", "LANG")}
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return {**kept, "PATH": path, "AWS_EC2_METADATA_DISABLED": "true", "UNBROKEN_NOTICES": "none"}
