"""What a training may reach and do: in the cluster, on the network, in its bucket."""

from __future__ import annotations

from urllib.parse import urlsplit

from unbroken.errors import ConfigError
from unbroken.job import Job
from unbroken.render.document import Document
from unbroken.render.pod import service_account_of
from unbroken.render.workload import metadata_of

_IMDS = "169.254.169.254/32"
_POD_IDENTITY = "169.254.170.23/32"
_ORPHAN_DAYS = 2


def node_reading(job: Job) -> list[Document]:
    """The right to read nodes, whose taints announce interruptions.

    Raises:
        ConfigError: the pods do not ask for their node.
    """
    if not job.kubernetes.read_node:
        raise ConfigError(
            "rbac is asked for, and the pods do not read their node", kind="read_node",
            hint="Write kubernetes: {read_node: true}",
        )  # fmt: skip
    name = f"{job.kubernetes.namespace}-{job.name}-node-reader"
    group = "rbac.authorization.k8s.io"
    metadata = {key: value for key, value in metadata_of(job, name).items() if key != "namespace"}
    role = {
        "apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": metadata,
        "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}],
    }  # fmt: skip
    subject = {"kind": "ServiceAccount", "name": service_account_of(job), "namespace": job.kubernetes.namespace}
    binding = {
        "apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name}, "subjects": [subject],
    }  # fmt: skip
    why = "Nodes have no namespace: a Role is not enough. It allows to get a node by its name, and no list of them."
    return [Document("cluster-role.yaml", role, {("rules",): why}), Document("cluster-role-binding.yaml", binding)]


def network_policy(job: Job) -> list[Document]:
    """What the pods may send to and hear from."""
    own = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": job.name}}}
    egress = [
        {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]},
        {"ports": [{"protocol": "TCP", "port": 443}]},
        {
            "to": [{"ipBlock": {"cidr": _IMDS}}, {"ipBlock": {"cidr": _POD_IDENTITY}}],
            "ports": [{"protocol": "TCP", "port": 80}],
        },
    ]
    ingress: list[dict[str, object]] = []
    if job.ranks.nodes > 1:
        egress.append({"to": [own]})
        ingress.append({"from": [own]})
    if job.kubernetes.metrics_port is not None:
        ingress.append({"ports": [{"protocol": "TCP", "port": job.kubernetes.metrics_port}]})
    data = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata_of(job, job.name),
        "spec": {**own, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress},
    }  # fmt: skip
    comments = {
        ("spec", "ingress"): "Nobody but the pods of the gang, and who reads metrics."
        if ingress
        else "Nobody connects to the pods.",
        ("spec", "egress", 1): "The store, by https; name its addresses to allow no more.",
        ("spec", "egress", 2): "The metadata service, and EKS Pod Identity's.",
    }
    return [Document("networkpolicy.yaml", data, comments)]


def pod_monitor(job: Job) -> list[Document]:
    """Prometheus Operator's PodMonitor.

    Raises:
        ConfigError: no port of metrics is known.
    """
    if job.kubernetes.metrics_port is None:
        raise ConfigError(
            "podmonitor is asked for, and no port of metrics is known", kind="metrics_port",
            hint="Write kubernetes: {metrics_port: 9400}, the port on which the training serves them",
        )  # fmt: skip
    data = {
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": metadata_of(job, job.name),
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": job.name}},
            "podMetricsEndpoints": [{"port": "metrics", "interval": "30s"}],
        },
    }  # fmt: skip
    return [Document("podmonitor.yaml", data)]


def bucket_lifecycle(job: Job) -> list[Document]:
    """For ``aws s3api put-bucket-lifecycle-configuration``: it replaces the rules that a bucket has.

    Raises:
        ConfigError: the run is not in S3.
    """
    _, prefix = _bucket(job, "bucket-lifecycle")
    rule = {
        "ID": f"{job.name}-orphaned-uploads", "Status": "Enabled", "Filter": {"Prefix": prefix},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _ORPHAN_DAYS},
    }  # fmt: skip
    return [Document("bucket-lifecycle.json", {"Rules": [rule]})]


def iam_policy(job: Job) -> list[Document]:
    """What the role of the pods must be allowed, and nothing else.

    Raises:
        ConfigError: the run is not in S3.
    """
    bucket, prefix = _bucket(job, "iam-policy")
    objects = {
        "Sid": "Objects",
        "Effect": "Allow",
        "Action": [
            "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:PutObject",
        ],
        "Resource": f"arn:aws:s3:::{bucket}/{prefix}*",
    }  # fmt: skip
    listing = {
        "Sid": "List", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{bucket}",
        "Condition": {"StringLike": {"s3:prefix": [f"{prefix}*"]}},
    }  # fmt: skip
    return [Document("iam-policy.json", {"Version": "2012-10-17", "Statement": [objects, listing]})]


def _bucket(job: Job, asked: str) -> tuple[str, str]:
    """Bucket, and what the keys of the run begin with."""
    parts = urlsplit(job.run)
    if parts.scheme != "s3":
        raise ConfigError(f"{asked} is for S3, and the run is at {job.run}", kind="run", hint=f"Leave {asked} out")
    prefix = parts.path.strip("/")
    return parts.netloc, f"{prefix}/" if prefix else ""
