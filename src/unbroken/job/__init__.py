"""The job file: what to run, where its state lives, where it may run, and what that costs.

Imports pydantic and PyYAML, so the command imports this package only in verbs that were given a job file.
"""

from unbroken.job.agent_settings import agent_environment, agent_settings, node_command
from unbroken.job.kubernetes import DISRUPTED, Kubernetes, TerminationHandler, Toleration, Volume
from unbroken.job.load import load_job, read_job
from unbroken.job.model import EC2, Job, Limits, Market, Notices, Pool, Prices, Ranks, Resources
from unbroken.job.schema import job_schema
from unbroken.job.stored import store_job, stored_job
from unbroken.job.torchrun import split_training, under_torchrun
from unbroken.job.values import parse_size

__all__ = [
    "DISRUPTED",
    "EC2",
    "Job",
    "Kubernetes",
    "Limits",
    "Market",
    "Notices",
    "Pool",
    "Prices",
    "Ranks",
    "Resources",
    "TerminationHandler",
    "Toleration",
    "Volume",
    "agent_environment",
    "agent_settings",
    "job_schema",
    "load_job",
    "node_command",
    "parse_size",
    "read_job",
    "split_training",
    "store_job",
    "stored_job",
    "under_torchrun",
]
