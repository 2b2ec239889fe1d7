"""A job on EC2: a launch template and an Auto Scaling group, for CloudFormation and for the engine alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unbroken.errors import ConfigError
from unbroken.job import EC2, Job
from unbroken.render.access import iam_policy
from unbroken.render.document import Block, Document, Path
from unbroken.render.user_data import grace_of, group_of, user_data
from unbroken.store import parse_uri

JOB_TAG = "unbroken:job"
DEFINITION_TAG = "unbroken:definition"
_MOST_TYPES = 40
_GIB = 1024**3
_SAVED_SECONDS = 20
"""What a machine has beyond its grace period to leave the group by itself."""


@dataclass(frozen=True)
class Definition:
    """What a job needs on EC2, in the words of its API; CloudFormation has the same but where noted."""

    name: str
    """Of the launch template and of the group."""
    template: dict[str, Any]
    """LaunchTemplateData; ``UserData`` is plain text."""
    group: dict[str, Any]
    """Of CreateAutoScalingGroup, without its name; ``LaunchTemplateSpecification`` is empty, subnets are a list."""
    tags: dict[str, str]
    """Of everything."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any of it."""
        whole = json.dumps([self.name, self.template, self.group, self.tags], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    @property
    def all_tags(self) -> dict[str, str]:
        """With the digest."""
        return {**self.tags, DEFINITION_TAG: self.digest}


def define(job: Job) -> Definition:
    """What a job needs on EC2.

    Raises:
        ConfigError: the job lacks what EC2 needs, has several nodes, or keeps its run on the machine's own disk.
    """
    ec2 = _suitable(job)
    tags = {**ec2.tags, JOB_TAG: job.name}
    return Definition(group_of(job.name), _launch_template(job, ec2, tags), _group(job, ec2), tags)


def _suitable(job: Job) -> EC2:
    if job.ec2 is None:
        raise ConfigError(
            "the job file says nothing of EC2", kind="ec2",
            hint="Write ec2: {region: ..., ami: ..., instance_profile: ..., subnets: [...], security_groups: [...]}",
        )  # fmt: skip
    if job.ranks.nodes > 1:
        raise ConfigError(
            f"the job has {job.ranks.nodes} nodes, and the engine ec2 runs one: in an Auto Scaling group no machine"
            " has an address that the others could know beforehand",
            kind="nodes", hint="For a gang use: unbroken render kubernetes",
        )  # fmt: skip
    if not job.pools:
        raise ConfigError(
            "the job file names no instance type", kind="pools", hint="Write pools: [{instance_type: g5.xlarge}]"
        )
    if parse_uri(job.run).scheme == "file":
        raise ConfigError(
            f"the run is in a folder ({job.run}), which is gone with the machine",
            kind="run",
            hint="Write run: s3://...",
        )
    return job.ec2


def _launch_template(job: Job, ec2: EC2, tags: dict[str, str]) -> dict[str, Any]:
    disk = {
        "VolumeType": "gp3", "VolumeSize": max(1, -(-ec2.volume // _GIB)), "Encrypted": True,
        "DeleteOnTermination": True,
    }  # fmt: skip
    profile = {"Arn" if ec2.instance_profile.startswith("arn:") else "Name": ec2.instance_profile}
    named = [{"Key": key, "Value": value} for key, value in {**tags, "Name": group_of(job.name)}.items()]
    return {
        "ImageId": ec2.ami,
        "IamInstanceProfile": profile,
        "SecurityGroupIds": list(ec2.security_groups),
        **({"KeyName": ec2.key_name} if ec2.key_name else {}),
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "BlockDeviceMappings": [{"DeviceName": ec2.root_device, "Ebs": disk}],
        "TagSpecifications": [{"ResourceType": kind, "Tags": named} for kind in ("instance", "volume")],
        "UserData": user_data(job, ec2),
    }


def _group(job: Job, ec2: EC2) -> dict[str, Any]:
    spot = any(pool.market == "spot" for pool in job.pools)
    chosen = [pool.instance_type for pool in job.pools if (pool.market == "spot") == spot]
    types = list(dict.fromkeys(chosen))
    if len(types) > _MOST_TYPES:
        raise ConfigError(
            f"the pools have {len(types)} instance types, and a group takes {_MOST_TYPES}", kind="pools",
            hint="Leave the rarest out",
        )  # fmt: skip
    market = {
        "OnDemandBaseCapacity": 0, "OnDemandPercentageAboveBaseCapacity": 0 if spot else 100,
        "SpotAllocationStrategy": "price-capacity-optimized",
    }  # fmt: skip
    hook = {
        "LifecycleHookName": "save", "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
        "HeartbeatTimeout": max(30, min(7200, grace_of(job) + _SAVED_SECONDS)), "DefaultResult": "CONTINUE",
    }  # fmt: skip
    return {
        "MinSize": 0,
        "MaxSize": job.ranks.nodes,
        "DesiredCapacity": job.ranks.nodes,
        "VPCZoneIdentifier": list(ec2.subnets),
        "CapacityRebalance": False,
        "MixedInstancesPolicy": {
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {}, "Overrides": [{"InstanceType": name} for name in types],
            },
            "InstancesDistribution": market,
        },
        "LifecycleHookSpecificationList": [hook],
    }  # fmt: skip


def render_ec2(job: Job, extras: Sequence[str] = ()) -> list[Document]:
    """The CloudFormation template of a job, and what else is asked for.

    Args:
        extras: names of :data:`EC2_EXTRAS`; in any order, twice is once.

    Raises:
        ConfigError: as :func:`define`.
    """
    documents = [_cloud_formation(job)]
    for name, render in EC2_EXTRAS.items():
        if name in extras:
            documents += render(job)
    return documents


def _cloud_formation(job: Job) -> Document:
    found = define(job)
    template = {**found.template, "UserData": {"Fn::Base64": Block(found.template["UserData"])}}
    group = {"AutoScalingGroupName": found.name, **found.group}
    policy = group["MixedInstancesPolicy"]
    version = {"LaunchTemplateId": {"Ref": "Machine"}, "Version": {"Fn::GetAtt": ["Machine", "LatestVersionNumber"]}}
    group["MixedInstancesPolicy"] = {
        **policy, "LaunchTemplate": {**policy["LaunchTemplate"], "LaunchTemplateSpecification": version},
    }  # fmt: skip
    for size in ("MinSize", "MaxSize", "DesiredCapacity"):
        group[size] = str(group[size])
    group["Tags"] = [{"Key": k, "Value": v, "PropagateAtLaunch": False} for k, v in found.all_tags.items()]
    machine = {"LaunchTemplateName": found.name, "LaunchTemplateData": template}
    data = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"Unbroken, training {job.name}",
        "Resources": {
            "Machine": {"Type": "AWS::EC2::LaunchTemplate", "Properties": machine},
            "Group": {"Type": "AWS::AutoScaling::AutoScalingGroup", "Properties": group},
        },
    }
    return Document("cloudformation.yaml", data, _comments(job))


def _comments(job: Job) -> dict[Path, str]:
    machine: Path = ("Resources", "Machine", "Properties", "LaunchTemplateData")
    group: Path = ("Resources", "Group", "Properties")
    found = {
        (*machine, "MetadataOptions"): "The agent hears interruptions there, with tokens; containers hear nothing.",
        (*machine, "InstanceInitiatedShutdownBehavior"): "An interrupted machine shuts itself down, and is replaced.",
        (*group, "DesiredCapacity"): "0 stops the training; updating the stack starts it again.",
        (*group, "CapacityRebalance"): "At an advisory the agent saves: a machine that may live is not replaced.",
        (*group, "LifecycleHookSpecificationList"): "Until then a machine that is taken out of the group may save.",
    }
    if len({pool.market for pool in job.pools}) > 1:
        found[(*group, "MixedInstancesPolicy", "InstancesDistribution")] = (
            "Spot alone: a group of one machine does not fall back to the pools on demand."
        )
    return found


def instance_policy(job: Job) -> list[Document]:
    """What the role of the instance profile must be allowed, and nothing else.

    Raises:
        ConfigError: the run is not in S3.
    """
    ec2, (document,) = _suitable(job), iam_policy(job)
    name = group_of(job.name)
    group = {
        "Sid": "EndOwnGroup", "Effect": "Allow",
        "Action": ["autoscaling:CreateOrUpdateTags", "autoscaling:SetDesiredCapacity"],
        "Resource": f"arn:aws:autoscaling:{ec2.region}:*:autoScalingGroup:*:autoScalingGroupName/{name}",
    }  # fmt: skip
    data = {**document.data, "Statement": [*document.data["Statement"], group]}
    return [Document("iam-policy.json", data)]


EC2_EXTRAS: dict[str, Callable[[Job], list[Document]]] = {"iam-policy": instance_policy}
"""What is rendered on request, by the name with which it is asked for."""
