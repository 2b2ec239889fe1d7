"""A Job for one node, a JobSet for a gang, and the service account of both.

The rules are those of the Kubernetes documentation on pod failure policies, and of JobSet's API (v1alpha2).
"""

from __future__ import annotations

from typing import Any

from unbroken.errors import EXIT_CONFIG, EXIT_INTERRUPTED
from unbroken.job import Job
from unbroken.render.command import WORKERS, subdomain
from unbroken.render.document import Document, Path
from unbroken.render.pod import CONTAINER, labels_of, pod_comments, pod_template, service_account_of

_QUEUE = "kueue.x-k8s.io/queue-name"


def workload(job: Job) -> Document:
    """The training itself.

    Raises:
        ConfigError: the job lacks what Kubernetes needs.
    """
    return _jobset(job) if job.ranks.nodes > 1 else _job(job)


def metadata_of(job: Job, name: str, **more: Any) -> dict[str, Any]:
    """Name, namespace and labels of an object."""
    return {"name": name, "namespace": job.kubernetes.namespace, "labels": labels_of(job), **more}


def service_account(job: Job) -> Document:
    """Who the pods are to AWS and to the cluster."""
    arn = job.kubernetes.role_arn
    more = {"annotations": {"eks.amazonaws.com/role-arn": arn}} if arn else {}
    note = (
        "The role is taken by IRSA: its trust policy must name this namespace and service account."
        if arn
        else "With EKS Pod Identity: aws eks create-pod-identity-association --namespace "
        f"{job.kubernetes.namespace} --service-account {service_account_of(job)} --role-arn ROLE --cluster-name "
        "CLUSTER. With IRSA write kubernetes.role_arn in the job file instead."
    )
    data = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata_of(job, service_account_of(job), **more)}
    return Document("service-account.yaml", data, {("metadata",): note})


def _job(job: Job) -> Document:
    spec = {
        "backoffLimit": job.kubernetes.backoff_limit,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _rules(interrupted="Ignore", misconfigured="FailJob")},
        "template": pod_template(job),
    }
    data = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": _workload_metadata(job),
        "spec": _suspended(job) | spec,
    }  # fmt: skip
    comments: dict[Path, str] = {
        ("spec", "backoffLimit"): "Crashes that the agent could not mend by starting the training again. Interruptions "
        "do not count; the agent ends with a failure after some attempts that saved nothing new.",
        **_policy_comments(("spec",), gang=False),
        **pod_comments(job, ("spec", "template")),
    }
    return Document("job.yaml", data, comments)


def _jobset(job: Job) -> Document:
    alone = job.on_lost_node == "continue"
    child: dict[str, Any] = {
        "completionMode": "Indexed",
        "parallelism": job.ranks.nodes,
        "completions": job.ranks.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _rules(interrupted="Ignore" if alone else "FailJob", misconfigured="Count")},
        "template": pod_template(job),
    }
    data = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _workload_metadata(job),
        "spec": _suspended(job)
        | {
            "failurePolicy": {
                "maxRestarts": 0,
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {
                        "name": "interrupted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": subdomain(job)},
            "replicatedJobs": [{"name": WORKERS, "replicas": 1, "template": {"spec": child}}],
        },
    }
    at: Path = ("spec", "replicatedJobs", 0, "template", "spec")
    comments: dict[Path, str] = {
        ("spec", "failurePolicy"): "An interruption makes a child Job fail by its podFailurePolicy: all pods are made "
        "anew, and it does not count. Any other failure ends the JobSet, for agents start crashed trainings again in "
        "place. BlockingRecreate waits until the old pods are gone.",
        ("spec", "network"): "The pods find each other by name; torchrun's rendezvous is the first one's.",
        (*at, "backoffLimit"): "No pod is started again alone.",
        **_policy_comments(at, gang=True, alone=alone),
        **pod_comments(job, (*at, "template")),
    }
    return Document("jobset.yaml", data, comments)


def _rules(*, interrupted: str, misconfigured: str) -> list[dict[str, Any]]:
    return [
        {"action": misconfigured, "onExitCodes": _exit(EXIT_CONFIG)},
        {"action": interrupted, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": interrupted, "onExitCodes": _exit(EXIT_INTERRUPTED)},
    ]


def _exit(code: int) -> dict[str, Any]:
    return {"containerName": CONTAINER, "operator": "In", "values": [code]}


def _policy_comments(at: Path, *, gang: bool, alone: bool = False) -> dict[Path, str]:
    rules: Path = (*at, "podFailurePolicy", "rules")
    again = "the whole gang starts again" if gang and not alone else "a new pod takes its place"
    mend = "the JobSet ends" if gang else "the Job ends at once"
    return {
        (*at, "podReplacementPolicy"): "A new pod waits until the old one is gone: two must not train at once.",
        (*rules, 0): f"{EXIT_CONFIG}: command or settings are to be mended first; {mend}.",
        (*rules, 1): f"Evicted, or its node was taken away: no failure of the training; {again}.",
        (*rules, 2): f"{EXIT_INTERRUPTED}: interrupted, and saved; {again}.",
    }


def _workload_metadata(job: Job) -> dict[str, Any]:
    metadata = metadata_of(job, job.name)
    if job.kubernetes.queue is not None:
        metadata["labels"] = metadata["labels"] | {_QUEUE: job.kubernetes.queue}
    return metadata


def _suspended(job: Job) -> dict[str, Any]:
    """Kueue admits a workload by taking this away."""
    return {"suspend": True} if job.kubernetes.queue is not None else {}
