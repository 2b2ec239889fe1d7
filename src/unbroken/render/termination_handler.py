"""AWS's Node Termination Handler as plain documents, for nodes that neither Karpenter nor EKS looks after."""

from __future__ import annotations

import re
from typing import Any, Literal

from unbroken.job import Job, TerminationHandler
from unbroken.render.checks import check_label_map, refused
from unbroken.render.document import Document
from unbroken.render.yaml_text import Why

NAME = "aws-node-termination-handler"
_NAMESPACE = "kube-system"
_IMAGE = "public.ecr.aws/aws-ec2/aws-node-termination-handler:v1.22.0"
_LABELS = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/managed-by": "unbroken"}
_QUEUE_URL = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/[0-9]{12}/[A-Za-z0-9_-]{1,80}(?:\.fifo)?")


def termination_handler(job: Job, mode: Literal["imds", "queue"]) -> list[Document]:
    """Service account, permissions, and the DaemonSet or Deployment.

    Raises:
        ConfigError: the job's nodes have somebody who drains them, or the queue is missing or no queue.
    """
    provisioner = job.kubernetes.provisioner
    if provisioner != "other":
        drains = "Karpenter's interruption queue" if provisioner == "karpenter" else "the EKS managed node group"
        raise refused(
            f"the Node Termination Handler would drain nodes that {drains} drains already"
            f" (kubernetes.provisioner: {provisioner})",
            "Leave it out. For nodes of your own write kubernetes: {provisioner: other, node_selector: {...}}",
        )
    settings = job.kubernetes.termination_handler or TerminationHandler()
    check_label_map("kubernetes.termination_handler.node_selector", settings.node_selector)
    worker = _daemon_set(settings) if mode == "imds" else _deployment(settings)
    return [*_permissions(), worker]


def _permissions() -> list[Document]:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata()}
    rules = [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "patch", "update"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
        {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    ]
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": _metadata(namespaced=False), "rules": rules}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": _metadata(namespaced=False),
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": _NAMESPACE}],
    }
    return [
        Document(
            "nth-service-account.yaml", account, "AWS Node Termination Handler: cordons, taints and drains nodes."
        ),
        Document("nth-cluster-role.yaml", role),
        Document("nth-cluster-role-binding.yaml", binding),
    ]


def _daemon_set(settings: TerminationHandler) -> Document:
    features = {
        "ENABLE_SPOT_INTERRUPTION_DRAINING": "true",
        "ENABLE_SCHEDULED_EVENT_DRAINING": "true",
        "ENABLE_REBALANCE_MONITORING": Why("true", "A recommendation is tainted as an advisory, and drains nothing."),
        "ENABLE_REBALANCE_DRAINING": "false",
        "ENABLE_SQS_TERMINATION_DRAINING": "false",
    }
    pod = _pod(features) | {
        "hostNetwork": Why(
            True, "Reaches the metadata service where its hop limit of 1 stops a pod of its own network."
        ),
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": {"kubernetes.io/os": "linux", **settings.node_selector},
        "tolerations": Why(
            [{"operator": "Exists"}], "It has to run on every node, drained ones too; for a training it would be wrong."
        ),
    }
    body = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": _metadata(),
        "spec": {"selector": _selector(), "template": {"metadata": {"labels": dict(_LABELS)}, "spec": pod}},
    }
    return Document("nth.yaml", body, "IMDS mode: on each node one pod asks the node's own metadata service.")


def _deployment(settings: TerminationHandler) -> Document:
    url = settings.queue_url
    found = _QUEUE_URL.fullmatch(url or "")
    if found is None:
        raise refused(
            f"the queue of the Node Termination Handler is {url!r}",
            "Write kubernetes: {termination_handler: {mode: queue, queue_url:"
            " https://sqs.REGION.amazonaws.com/ACCOUNT/NAME}}",
        )
    features = {
        "ENABLE_SPOT_INTERRUPTION_DRAINING": "false",
        "ENABLE_SCHEDULED_EVENT_DRAINING": "false",
        "ENABLE_REBALANCE_MONITORING": "false",
        "ENABLE_REBALANCE_DRAINING": "false",
        "ENABLE_SQS_TERMINATION_DRAINING": "true",
        "QUEUE_URL": url,
        "AWS_REGION": found[1],
    }
    pod = _pod(features) | {"nodeSelector": {"kubernetes.io/os": "linux"}}
    specification = {
        "replicas": 1,
        "selector": _selector(),
        "template": {"metadata": {"labels": dict(_LABELS)}, "spec": pod},
    }
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(), "spec": specification}
    about = (
        "Queue mode: one pod reads the events of all nodes from SQS. Its service account needs an AWS role that may"
        " read the queue; keep it off spot nodes by a node group of your own."
    )
    return Document("nth.yaml", body, about)


def _pod(features: dict[str, Any]) -> dict[str, Any]:
    settings = {
        **features,
        "TAINT_NODE": Why("true", "Trainings that may read their Node object hear of it before the drain."),
        "IGNORE_DAEMON_SETS": "true",
        "DELETE_LOCAL_DATA": Why("true", "Otherwise a pod with an emptyDir, as each training is, stops the drain."),
        "POD_TERMINATION_GRACE_PERIOD": Why("-1", "Each pod's own grace period."),
        "NODE_TERMINATION_GRACE_PERIOD": "120",
        "EMIT_KUBERNETES_EVENTS": "true",
    }
    return {
        "serviceAccountName": NAME,
        "priorityClassName": "system-node-critical",
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": NAME,
                "image": _IMAGE,
                "env": [
                    *(_field(*field) for field in _FIELDS),
                    *(_variable(name, value) for name, value in settings.items()),
                ],
                "resources": {
                    "requests": {"cpu": "50m", "memory": "64Mi"},
                    "limits": {"memory": "128Mi"},
                },
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 1000,
                    "runAsGroup": 1000,
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }


_FIELDS = (("NODE_NAME", "spec.nodeName"), ("POD_NAME", "metadata.name"), ("NAMESPACE", "metadata.namespace"))


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _variable(name: str, value: Any) -> Any:
    if isinstance(value, Why):
        return Why({"name": name, "value": value.value}, value.reason)
    return {"name": name, "value": value}


def _selector() -> dict[str, Any]:
    return {"matchLabels": {"app.kubernetes.io/name": NAME}}


def _metadata(*, namespaced: bool = True) -> dict[str, Any]:
    place = {"namespace": _NAMESPACE} if namespaced else {}
    return {"name": NAME, **place, "labels": dict(_LABELS)}
