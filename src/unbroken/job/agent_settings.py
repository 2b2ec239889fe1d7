"""What a job file says to the agent of one node: the options of ``unbroken run``, and the command behind them."""

from __future__ import annotations

from typing import Any

from unbroken.errors import ConfigError
from unbroken.job.model import Job
from unbroken.job.torchrun import under_torchrun


def agent_settings(job: Job) -> dict[str, Any]:
    """The options that the job sets, by the names of their parameters; the others keep their defaults."""
    settings = {
        "uri": job.run,
        "every": job.every,
        "keep": job.keep,
        "grace": None if job.grace is None else f"{job.grace:g}",
        "notices": ",".join(f"-{source}" for source in job.notices.off) or None,
        "no_progress_limit": job.limits.no_progress,
        "max_restarts": job.limits.max_restarts,
        **_pool(job),
    }
    return {name: value for name, value in settings.items() if value is not None}


def _pool(job: Job) -> dict[str, Any]:
    """Where the node comes from: known where there is one pool alone."""
    if len(job.pools) != 1:
        return {}
    (pool,) = job.pools
    price = job.price_of(pool)
    return {"pool": str(pool)} | ({} if price is None else {"price": price, "currency": job.currency})


def agent_environment(job: Job) -> dict[str, str]:
    """Environment variables of the agent and of what it starts; the job's own outrank the others."""
    poll = {} if job.notices.poll is None else {"UNBROKEN_NOTICE_POLL": f"{job.notices.poll:g}"}
    return poll | job.env


def node_command(job: Job) -> list[str]:
    """The training on the one node that it has: several ranks by torchrun.

    Raises:
        ConfigError: it has several nodes.
    """
    if job.ranks.nodes > 1:
        raise ConfigError(
            f"the job has {job.ranks.nodes} nodes, and this is one machine", kind="nodes",
            hint="Give each node its torchrun (docs/many-ranks.md), or use: unbroken render kubernetes",
        )  # fmt: skip
    if job.ranks.per_node == 1:
        return job.argv
    return under_torchrun(job.argv, ["--standalone", f"--nproc-per-node={job.ranks.per_node}"])
