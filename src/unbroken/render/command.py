"""What the container runs: ``unbroken run`` with the job's options around the training."""

from __future__ import annotations

from typing import Any

from unbroken.job import Job, Pool, under_torchrun
from unbroken.render.yaml_text import Why

PORT = 29400
"""On which the gang meets: torchrun's own default."""
REPLICATED_JOB = "node"
DEFAULT_GRACE = 100
"""Seconds. Of a spot instance's 120 some are gone when the drain begins."""


def grace_seconds(job: Job) -> int:
    """From SIGTERM to SIGKILL, in whole seconds."""
    return DEFAULT_GRACE if job.grace is None else int(job.grace)


def subdomain(job: Job) -> str:
    """Name of the headless service of a gang; before Kubernetes 1.34 one must begin with a letter."""
    return job.name if job.name[0].isalpha() else f"n-{job.name}"


def container_command(job: Job) -> list[str]:
    """The exec form, word by word."""
    return ["unbroken", "run", *_options(job), "--", *_training(job)]


def literal(text: str) -> str:
    """Text that Kubernetes hands over as it is: it replaces ``$(NAME)`` in commands and variables."""
    return text.replace("$", "$$")


def environment(job: Job) -> list[Any]:
    """The variables of the container; those of the job last."""
    entries: list[Any] = []
    if "HOME" not in job.env:
        home = {"name": "HOME", "value": "/tmp"}  # noqa: S108 - the container's
        entries.append(Why(home, "Caches need a home that can be written; the root file system cannot."))
    if job.kubernetes.read_node:
        node = {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
        entries.append(Why(node, "Whose taints announce an interruption; reading them needs `--with rbac`."))
    if job.ranks.nodes > 1:
        address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
        entries.append(Why(address, "Ranks are told this address of rank 0, which needs no name service."))
    if job.notices.poll is not None:
        entries.append({"name": "UNBROKEN_NOTICE_POLL", "value": f"{job.notices.poll:g}"})
    return entries + [{"name": name, "value": literal(value)} for name, value in job.env.items()]


def _options(job: Job) -> list[str]:
    pool, price = _pool(job)
    given: dict[str, str | int | float | None] = {
        "--uri": literal(job.run),
        "--every": job.every,
        "--grace": grace_seconds(job),
        "--notices": ",".join(f"-{source}" for source in job.notices.off) or None,
        "--no-progress-limit": job.limits.no_progress,
        "--max-restarts": job.limits.max_restarts,
        "--pool": literal(str(pool)) if pool else None,
        "--price": price,
        "--currency": literal(job.currency) if price is not None else None,
    }
    return [f"{name}={value}" for name, value in given.items() if value is not None]


def _pool(job: Job) -> tuple[Pool | None, float | None]:
    """Pool and price of an hour, where the job leaves no choice of either."""
    if len(job.pools) == 1:
        pool = job.pools[0]
        return pool, pool.price if pool.price is not None else _market_price(job, pool)
    prices = {pool.price if pool.price is not None else _market_price(job, pool) for pool in job.pools}
    return None, prices.pop() if len(prices) == 1 else None


def _market_price(job: Job, pool: Pool) -> float | None:
    if job.prices is None:
        return None
    return job.prices.spot if pool.market == "spot" else job.prices.on_demand


def _training(job: Job) -> list[str]:
    training = [literal(word) for word in job.argv]
    if job.ranks.nodes > 1:
        return under_torchrun(training, _gang_options(job))
    if job.ranks.per_node > 1:
        return under_torchrun(training, ["--standalone", "--nnodes=1", f"--nproc-per-node={job.ranks.per_node}"])
    return training


def _gang_options(job: Job) -> list[str]:
    # Not the static rendezvous with its --node-rank: a node whose agent starts its part again in place could then join
    # the store of dead ranks (docs/design/009-render.md).
    host = f"{job.name}-{REPLICATED_JOB}-0-0.{subdomain(job)}"
    return [
        f"--nnodes={job.ranks.nodes}", f"--nproc-per-node={job.ranks.per_node}", "--rdzv-backend=c10d",
        f"--rdzv-endpoint={host}:{PORT}", f"--rdzv-id={job.name}", "--rdzv-conf=join_timeout=1800,read_timeout=300",
        "--local-addr=$(POD_IP)",
    ]  # fmt: skip
