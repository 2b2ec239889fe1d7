"""The engine `ec2`: a job of one node in an Auto Scaling group, for people without Kubernetes. Needs boto3."""

import boto3  # noqa: F401 - said here, so that its lack is named before anything is asked

from unbroken.engine.ec2.engine import EC2Engine
from unbroken.engine.face import Engine
from unbroken.errors import ConfigError
from unbroken.job import Job

__all__ = ["EC2Engine", "open_engine"]


def open_engine(job: Job) -> Engine:
    """The engine of the job's region.

    Raises:
        ConfigError: the job says nothing of EC2 (kind ``ec2``).
    """
    if job.ec2 is None:
        raise ConfigError(
            "the job file says nothing of EC2", kind="ec2",
            hint="Write ec2: {region: ..., ami: ..., instance_profile: ..., subnets: [...], security_groups: [...]}",
        )  # fmt: skip
    return EC2Engine(job.ec2.region)
