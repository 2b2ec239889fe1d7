"""Node pools for Karpenter: the spot market first, on demand behind it."""

from __future__ import annotations

import re
from typing import Any

from unbroken.job import Job
from unbroken.job.kubernetes import Karpenter
from unbroken.render.checks import refused
from unbroken.render.command import grace_seconds
from unbroken.render.document import Document
from unbroken.render.placement import TYPE, ZONE, markets
from unbroken.render.pod import metadata
from unbroken.render.yaml_text import Why

_WEIGHTS = {"spot": 100, "on-demand": 10}
_FORCED_AFTER = 10
_DISCOVERY = "karpenter.sh/discovery"


def node_pools(job: Job) -> list[Document]:
    """An EC2NodeClass and a NodePool for each market of the job.

    Raises:
        ConfigError: the job has no pools, or no ``kubernetes.karpenter``, or another provisioner.
    """
    settings = job.kubernetes
    if settings.karpenter is None:
        raise refused(
            "--with nodepool needs kubernetes.karpenter",
            "Write kubernetes: {karpenter: {cluster: NAME, node_role: ROLE}}",
        )
    if settings.provisioner != "karpenter":
        raise refused(
            f"--with nodepool is for Karpenter, and kubernetes.provisioner is {settings.provisioner}",
            "Leave one of them out",
        )
    if not job.pools:
        raise refused(
            "--with nodepool needs pools: which instance types may be used?",
            "Write pools: [{instance_type: g5.2xlarge}, {instance_type: g6.2xlarge}]; several make a spot node likelier",
        )
    return [_node_class(job, settings.karpenter), *(_node_pool(job, market) for market in markets(job))]


def _node_class(job: Job, settings: Karpenter) -> Document:
    found = [{"tags": {_DISCOVERY: settings.cluster}}]
    device = "/dev/xvdb" if settings.ami.startswith("bottlerocket@") else "/dev/xvda"
    disk = {"volumeSize": settings.volume, "volumeType": "gp3", "encrypted": True, "deleteOnTermination": True}
    specification: dict[str, Any] = {
        **_image(settings),
        "role": settings.node_role,
        "subnetSelectorTerms": found,
        "securityGroupSelectorTerms": found,
        "metadataOptions": {
            "httpTokens": "required",
            "httpPutResponseHopLimit": Why(
                1,
                "Pods cannot reach the metadata service, and with it the node's credentials. They hear of interruptions"
                " by SIGTERM, or from the Node object (kubernetes.read_node).",
            ),
        },
        "blockDeviceMappings": [{"deviceName": device, "ebs": disk}],
    }
    body = {
        "apiVersion": "karpenter.k8s.aws/v1",
        "kind": "EC2NodeClass",
        "metadata": metadata(job, job.name, namespaced=False),
        "spec": specification,
    }
    return Document("ec2nodeclass.yaml", body, "Machines for the training. Karpenter 1.0 or newer.")


def _image(settings: Karpenter) -> dict[str, Any]:
    if re.fullmatch(r"ami-[0-9a-z]+", settings.ami):
        return {"amiFamily": "AL2023", "amiSelectorTerms": [{"id": settings.ami}]}
    if not re.fullmatch(r"[a-zA-Z0-9]+@.+", settings.ami):
        raise refused(
            f"kubernetes.karpenter.ami is {settings.ami!r}", "Write an alias such as al2023@latest, or ami-0123456789"
        )
    return {"amiSelectorTerms": [{"alias": settings.ami}]}


def _node_pool(job: Job, market: str) -> Document:
    pools = [pool for pool in job.pools if pool.market == market]
    requirements = [
        _in("karpenter.sh/capacity-type", [market]),
        _in(TYPE, sorted({pool.instance_type for pool in pools})),
    ]
    zones = {pool.zone for pool in pools}
    if None not in zones:
        requirements.append(_in(ZONE, sorted(zone for zone in zones if zone)))
    name = f"{job.name}-{market}"
    specification = {
        "weight": _WEIGHTS[market],
        "template": {"metadata": {"labels": metadata(job, name)["labels"]}, "spec": _nodes(job, requirements)},
        "disruption": {
            "consolidationPolicy": Why(
                "WhenEmpty", "A training that runs is not moved to save money: the machine goes when it is done."
            ),
            "consolidateAfter": "1m",
        },
    }
    body = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": metadata(job, name, namespaced=False),
        "spec": specification,
    }
    about = "On the spot market: the highest weight is tried first." if market == "spot" else _BEHIND
    return Document(f"nodepool-{market}.yaml", body, about)


_BEHIND = "On demand: tried where the node pool of a higher weight has nothing to give."


def _nodes(job: Job, requirements: list[dict[str, Any]]) -> dict[str, Any]:
    nodes: dict[str, Any] = {
        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": job.name},
        "requirements": requirements,
        "expireAfter": Why(
            "Never", "Nodes are empty, and go, when the training ends; age is no reason to interrupt it."
        ),
        "terminationGracePeriod": Why(
            f"{grace_seconds(job) + _FORCED_AFTER}s",
            f"The pods' grace period and {_FORCED_AFTER} s: even what blocks a drain is then drained in time to save.",
        ),
    }
    if job.resources.gpu:
        taint = {"key": job.kubernetes.gpu_resource, "value": "true", "effect": "NoSchedule"}
        nodes["taints"] = Why([taint], "Keeps pods that need no GPU away.")
    return nodes


def _in(key: str, values: list[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": values}
