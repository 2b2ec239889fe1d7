"""Who may reach what in the cluster: the Node object, the network, the metrics."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from unbroken.job import Job
from unbroken.render.checks import refused
from unbroken.render.document import Document
from unbroken.render.pod import metadata, selector, service_account
from unbroken.render.yaml_text import Why

_RBAC = "rbac.authorization.k8s.io"
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def rbac(job: Job) -> list[Document]:
    """The right to read Node objects.

    Raises:
        ConfigError: the pods do not read it.
    """
    if not job.kubernetes.read_node:
        raise refused(
            "--with rbac lets the pods read their Node object, and kubernetes.read_node is false",
            "Write kubernetes: {read_node: true}, or leave it out",
        )
    name = f"{job.kubernetes.namespace}-{job.name}-node-reader"
    role = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": metadata(job, name, namespaced=False),
        "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}],
    }
    binding = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": metadata(job, name, namespaced=False),
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": service_account(job), "namespace": job.kubernetes.namespace}],
    }
    about = (
        "Lets the pods hear of an interruption from the taints of their node. Nodes have no namespace: a Role cannot."
    )
    return [
        Document("node-reader-cluster-role.yaml", role, about),
        Document("node-reader-cluster-role-binding.yaml", binding),
    ]


def network_policy(job: Job) -> list[Document]:
    """What the pods may reach, and who may reach them."""
    ingress: list[Any] = []
    egress: list[Any] = [
        Why({"ports": [_port("UDP", 53), _port("TCP", 53)]}, "Names."),
        Why({"ports": [_port("TCP", port) for port in _ports(job)]}, "The store and the clouds' APIs."),
        Why(
            {
                "to": [{"ipBlock": {"cidr": cidr}} for cidr in ("169.254.169.254/32", "169.254.170.23/32")],
                "ports": [_port("TCP", 80)],
            },
            "The metadata service, and the agent of EKS Pod Identity.",
        ),
    ]
    if job.ranks.nodes > 1:
        gang = [{"podSelector": selector(job)}]
        ingress.append(Why({"from": gang}, "The ranks among each other, on ports that are not known beforehand."))
        egress.append({"to": gang})
    if job.kubernetes.metrics_port is not None:
        ingress.append({"ports": [_port("TCP", job.kubernetes.metrics_port)]})
    body = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(job, job.name),
        "spec": {
            "podSelector": selector(job),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }
    return [Document("network-policy.yaml", body, "Holds where the cluster's network plugin heeds policies.")]


def pod_monitor(job: Job) -> list[Document]:
    """What Prometheus reads.

    Raises:
        ConfigError: the training serves no metrics.
    """
    if job.kubernetes.metrics_port is None:
        raise refused(
            "--with podmonitor needs kubernetes.metrics_port",
            "Name the port on which the training serves metrics: kubernetes: {metrics_port: 9090}",
        )
    body = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(job, job.name),
        "spec": {
            "selector": selector(job),
            "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics", "interval": "15s"}],
        },
    }
    return [Document("pod-monitor.yaml", body, "For the Prometheus operator; it may select by further labels.")]


def _ports(job: Job) -> list[int]:
    ports = {443}
    if job.kubernetes.read_node:
        ports.add(6443)  # behind the service of the API, where policies apply to the address it stands for
    for name in _ENDPOINTS:
        if name in job.env:
            ports.add(_endpoint_port(name, job.env[name]))
    return sorted(ports)


def _endpoint_port(name: str, url: str) -> int:
    try:
        parts = urlsplit(url)
        return parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError as error:
        raise refused(f"env.{name} is {url!r}, which is no URL", "Write http://HOST:PORT or https://HOST") from error


def _port(protocol: str, port: int) -> dict[str, Any]:
    return {"protocol": protocol, "port": port}
