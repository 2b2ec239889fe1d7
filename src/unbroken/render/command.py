"""The words of the container's command, and its environment."""

from __future__ import annotations

import math
from typing import Any

from unbroken.job import Job, agent_environment, agent_settings, node_command, under_torchrun

GRACE = 100.0
"""Seconds from SIGTERM to the kill; of a notice of 120 s more is not left once it was heard."""
WORKERS = "workers"
"""Name of the gang's one group of pods in its JobSet."""
_PORT = 29400
_JOIN_SECONDS = 1800
"""For how long the first nodes of a gang wait for the last: they may have to be bought first."""


def grace_of(job: Job) -> int:
    """Whole seconds between SIGTERM and the kill."""
    return math.ceil(job.grace if job.grace is not None else GRACE)


def subdomain(job: Job) -> str:
    """Name of the gang's headless service; before Kubernetes 1.34 it must begin with a letter."""
    return job.name if job.name[0].isalpha() else f"n-{job.name}"


def container_command(job: Job) -> list[str]:
    """What the container runs, as process 1: the agent, and behind two dashes the training."""
    settings = {**agent_settings(job), "grace": grace_of(job)}
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", _text(value))]
    return ["unbroken", "run", *map(_literal, options), "--", *training_command(job)]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _literal(text: str) -> str:
    """As Kubernetes hands it over unchanged: it replaces ``$(NAME)`` in commands and variables, and ``$$`` by ``$``."""
    return text.replace("$", "$$")


def training_command(job: Job) -> list[str]:
    """What the agent starts: several ranks by torchrun, which meet at the first pod of a gang."""
    if job.ranks.nodes == 1:
        return [_literal(word) for word in node_command(job)]
    least = "1:" if job.on_lost_node == "continue" else ""
    return under_torchrun(
        [_literal(word) for word in job.argv],
        [
            f"--nnodes={least}{job.ranks.nodes}", f"--nproc-per-node={job.ranks.per_node}", "--rdzv-backend=c10d",
            f"--rdzv-endpoint={job.name}-{WORKERS}-0-0.{subdomain(job)}:{_PORT}", f"--rdzv-id={job.name}",
            f"--rdzv-conf=join_timeout={_JOIN_SECONDS}", "--local-addr=$(POD_IP)",
        ],
    )  # fmt: skip


def environment(job: Job) -> list[dict[str, Any]]:
    """The container's variables: what the agent needs, then the job's own, which outrank it."""
    found: dict[str, dict[str, Any]] = {
        # The root file system is read-only: caches go where the pod may write.
        "HOME": {"value": "/tmp"},  # noqa: S108 - the path in the container
    }
    if job.kubernetes.read_node:
        found["NODE_NAME"] = {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    if job.ranks.nodes > 1:
        # Ranks are told this address of the first one, which no name service has to know yet.
        found["POD_IP"] = {"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    found |= {name: {"value": _literal(value)} for name, value in agent_environment(job).items()}
    return [{"name": name, **value} for name, value in found.items()]
