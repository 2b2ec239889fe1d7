"""The words of the container's command, and its environment."""

from __future__ import annotations

import math
from typing import Any

from unbroken.errors import ConfigError
from unbroken.job import Job, under_torchrun

GRACE = 100.0
"""Seconds from SIGTERM to the kill; of a notice of 120 s more is not left once it was heard."""
WORKERS = "workers"
"""Name of the gang's one group of pods in its JobSet."""
_PORT = 29400


def grace_of(job: Job) -> int:
    """Whole seconds between SIGTERM and the kill."""
    return math.ceil(job.grace if job.grace is not None else GRACE)


def container_command(job: Job) -> list[str]:
    """What the container runs, as process 1: the agent, and behind two dashes the training.

    Raises:
        ConfigError: the job says something that the agent cannot be told.
    """
    if job.keep is not None:
        raise ConfigError(
            "keep cannot be handed to the training yet", kind="keep", hint="Say it in the script: Run(keep=...)"
        )
    words = ["unbroken", "run", "--uri", job.run, "--grace", str(grace_of(job))]
    if job.every is not None:
        words += ["--every", job.every]
    if job.notices.off:
        words += ["--notices", ",".join(f"-{source}" for source in job.notices.off)]
    if job.limits.max_restarts is not None:
        words += ["--max-restarts", str(job.limits.max_restarts)]
    if job.limits.no_progress is not None:
        words += ["--no-progress-limit", str(job.limits.no_progress)]
    return [*words, *_pool(job), "--", *training_command(job)]


def _pool(job: Job) -> list[str]:
    """A pod cannot learn which pool it got: it is known where there is one alone."""
    if len(job.pools) != 1:
        return []
    (pool,) = job.pools
    price = pool.price
    if price is None and job.prices is not None:
        price = job.prices.spot if pool.market == "spot" else job.prices.on_demand
    return ["--pool", str(pool)] + ([] if price is None else ["--price", f"{price:g}", "--currency", job.currency])


def training_command(job: Job) -> list[str]:
    """What the agent starts: several ranks by torchrun, which meet at the first pod of a gang."""
    if job.ranks.total == 1:
        return job.argv
    ranks = f"--nproc-per-node={job.ranks.per_node}"
    if job.ranks.nodes == 1:
        return under_torchrun(job.argv, ["--standalone", ranks])
    least = "1:" if job.on_lost_node == "continue" else ""
    return under_torchrun(
        job.argv,
        [
            f"--nnodes={least}{job.ranks.nodes}", ranks, "--rdzv-backend=c10d",
            f"--rdzv-endpoint={job.name}-{WORKERS}-0-0.{job.name}:{_PORT}", f"--rdzv-id={job.name}",
        ],
    )  # fmt: skip


def environment(job: Job) -> list[dict[str, Any]]:
    """The container's variables: what the agent needs, then the job's own, which outrank it."""
    found: dict[str, dict[str, Any]] = {
        # The root file system is read-only: caches go where the pod may write.
        "HOME": {"value": "/tmp"},  # noqa: S108 - the path in the container
    }
    if job.notices.poll is not None:
        found["UNBROKEN_NOTICE_POLL"] = {"value": f"{job.notices.poll:g}"}
    if job.kubernetes.read_node:
        found["NODE_NAME"] = {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    found |= {name: {"value": value} for name, value in job.env.items()}
    return [{"name": name, **value} for name, value in found.items()]
