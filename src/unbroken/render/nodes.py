"""Who makes the nodes and who drains them: Karpenter's pools, and AWS's Node Termination Handler.

Karpenter's API is v1; the handler's variables are those of its configuration.
"""

from __future__ import annotations

from typing import Any

from unbroken.errors import ConfigError
from unbroken.job import Job, Market, TerminationHandler
from unbroken.render.command import grace_of
from unbroken.render.document import Document, Path
from unbroken.render.placement import TYPE, ZONE
from unbroken.render.pod import labels_of

_HANDLER = "aws-node-termination-handler"
_HANDLER_IMAGE = "public.ecr.aws/aws-ec2/aws-node-termination-handler:v1.25.2"
_SYSTEM = "kube-system"
_WEIGHTS: dict[Market, int] = {"spot": 100, "on-demand": 10}


def node_pools(job: Job) -> list[Document]:
    """A NodePool for each market of the job's pools, spot before on-demand, and their EC2NodeClass.

    Raises:
        ConfigError: the job names no pools, or no cluster.
    """
    settings = job.kubernetes.karpenter
    if settings is None:
        raise ConfigError(
            "kubernetes.karpenter is missing, which nodepool needs", kind="karpenter",
            hint="Write kubernetes: {karpenter: {cluster: NAME, node_role: ROLE}}",
        )  # fmt: skip
    if not job.pools:
        raise ConfigError(
            "pools are missing, which nodepool needs", kind="pools",
            hint="Write pools: [{instance_type: g5.xlarge, zone: us-east-1a}, ...]",
        )  # fmt: skip
    markets = sorted({pool.market for pool in job.pools}, key=lambda market: -_WEIGHTS[market])
    discovery = [{"tags": {"karpenter.sh/discovery": settings.cluster}}]
    node_class = {
        "apiVersion": "karpenter.k8s.aws/v1",
        "kind": "EC2NodeClass",
        "metadata": {"name": job.name, "labels": labels_of(job)},
        "spec": {
            "amiSelectorTerms": [{"alias": settings.ami}],
            "role": settings.node_role,
            "subnetSelectorTerms": discovery,
            "securityGroupSelectorTerms": discovery,
            "metadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 1},
            "blockDeviceMappings": [
                {
                    "deviceName": "/dev/xvda",
                    "ebs": {"volumeSize": settings.volume, "volumeType": "gp3", "encrypted": True},
                }
            ],
        },
    }
    comments: dict[Path, str] = {
        ("spec", "metadataOptions"): "A hop limit of 1 keeps the node's credentials from the pods, and its metadata "
        "service as well: pods hear of interruptions by SIGTERM.",
    }
    return [
        *(_node_pool(job, market) for market in markets),
        Document("ec2nodeclass.yaml", node_class, comments),
    ]


def _node_pool(job: Job, market: Market) -> Document:
    pools = [pool for pool in job.pools if pool.market == market]
    types = list(dict.fromkeys(pool.instance_type for pool in pools))
    zones = [] if any(pool.zone is None for pool in pools) else list(dict.fromkeys(str(pool.zone) for pool in pools))
    requirements = [_is_in("karpenter.sh/capacity-type", [market]), _is_in(TYPE, types)]
    requirements += [_is_in(ZONE, zones)] if zones else []
    data = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": f"{job.name}-{market}", "labels": labels_of(job)},
        "spec": {
            "weight": _WEIGHTS[market],
            "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "60s"},
            "template": {
                "spec": {
                    "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": job.name},
                    "requirements": requirements,
                    "expireAfter": "Never",
                    "terminationGracePeriod": f"{grace_of(job) + 10}s",
                }
            },
        },
    }
    at: Path = ("spec", "template", "spec")
    comments: dict[Path, str] = {
        ("spec", "weight"): "Pools of spot come first; where none of them has a machine, on demand is taken."
        if len({pool.market for pool in job.pools}) > 1
        else "Before pools of a smaller weight.",
        ("spec", "disruption"): "A training is not moved to save a little: each move costs a restart.",
        (*at, "requirements"): "Several types and zones are several pools of spot: one shortage does not stop the job.",
        (*at, "terminationGracePeriod"): "Pods that block the drain are deleted in time for their grace all the same.",
    }
    return Document(f"nodepool-{market}.yaml", data, comments)


def termination_handler(job: Job) -> list[Document]:
    """AWS's Node Termination Handler, for nodes that neither Karpenter nor an EKS managed node group looks after."""
    settings = job.kubernetes.termination_handler or TerminationHandler()
    subject = {"kind": "ServiceAccount", "name": _HANDLER, "namespace": _SYSTEM}
    role_ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": _HANDLER}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(namespaced=True)}
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": _metadata(),
        "rules": [
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "patch", "update"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
            {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
            {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get"]},
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": _metadata(),
        "roleRef": role_ref,
        "subjects": [subject],
    }
    note = (
        "Not beside Karpenter's own interruption queue, and not for EKS managed node groups: both drain by themselves."
    )
    return [
        Document("nth-service-account.yaml", account, {(): note}),
        Document("nth-cluster-role.yaml", role),
        Document("nth-cluster-role-binding.yaml", binding),
        _handler(settings),
    ]


def _handler(settings: TerminationHandler) -> Document:
    labels = {"app.kubernetes.io/name": _HANDLER}
    queue = settings.mode == "queue"
    spec: dict[str, Any] = {
        "serviceAccountName": _HANDLER,
        "priorityClassName": "system-node-critical",
        "nodeSelector": {"kubernetes.io/os": "linux", **settings.node_selector},
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    if not queue:
        spec |= {
            "hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet", "tolerations": [{"operator": "Exists"}],
        }  # fmt: skip
    spec["containers"] = [
        {
            "name": _HANDLER,
            "image": _HANDLER_IMAGE,
            "env": _handler_environment(settings),
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            },
        }
    ]  # fmt: skip
    template = {"metadata": {"labels": labels}, "spec": spec}
    at: Path = ("spec", "template", "spec")
    comments: dict[Path, str] = {
        (*at, "containers", 0, "env"): "TAINT_NODE tells the trainings, which may read their node, before the eviction "
        "does; DELETE_LOCAL_DATA lets pods with an emptyDir be evicted; POD_TERMINATION_GRACE_PERIOD of -1 leaves each "
        "pod its own.",
    }
    if queue:
        body = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        kind = "Deployment"
    else:
        body = {"selector": {"matchLabels": labels}, "template": template}
        kind = "DaemonSet"
        comments[*at, "hostNetwork"] = "The metadata service answers within one network hop: not in pods of their own."
        comments[*at, "tolerations"] = "It stays on every node, the interrupted ones above all."
    data = {"apiVersion": "apps/v1", "kind": kind, "metadata": _metadata(namespaced=True), "spec": body}
    return Document(f"nth-{kind.lower()}.yaml", data, comments)


def _handler_environment(settings: TerminationHandler) -> list[dict[str, Any]]:
    fields = {"NODE_NAME": "spec.nodeName", "POD_NAME": "metadata.name", "NAMESPACE": "metadata.namespace"}
    values = {
        "TAINT_NODE": "true", "DELETE_LOCAL_DATA": "true", "IGNORE_DAEMON_SETS": "true",
        "POD_TERMINATION_GRACE_PERIOD": "-1", "NODE_TERMINATION_GRACE_PERIOD": "120",
    }  # fmt: skip
    if settings.mode == "queue":
        values |= {"ENABLE_SQS_TERMINATION_DRAINING": "true", "QUEUE_URL": settings.queue_url or ""}
    else:
        values |= {
            "ENABLE_SPOT_INTERRUPTION_DRAINING": "true", "ENABLE_SCHEDULED_EVENT_DRAINING": "true",
            "ENABLE_REBALANCE_MONITORING": "true", "ENABLE_REBALANCE_DRAINING": "false",
        }  # fmt: skip
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        *({"name": name, "value": value} for name, value in values.items()),
    ]


def _metadata(*, namespaced: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": _HANDLER}
    return metadata | ({"namespace": _SYSTEM} if namespaced else {}) | {"labels": {"app.kubernetes.io/name": _HANDLER}}


def _is_in(key: str, values: list[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": values}
