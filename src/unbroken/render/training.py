"""The training itself: a Job where it has one node, a JobSet where it is a gang."""

from __future__ import annotations

from typing import Any

from unbroken.errors import EXIT_CONFIG, EXIT_INTERRUPTED
from unbroken.job import Job
from unbroken.render.command import REPLICATED_JOB, subdomain
from unbroken.render.document import Document
from unbroken.render.pod import CONTAINER, labels, metadata, pod_template, service_account
from unbroken.render.yaml_text import Why

_QUEUE = "kueue.x-k8s.io/queue-name"
_ROLE = "eks.amazonaws.com/role-arn"


def training(job: Job) -> list[Document]:
    """The service account, where it is the job's own, and the Job or JobSet."""
    whole = _job_set(job) if job.ranks.nodes > 1 else _job(job)
    return [*_account(job), whole]


def _account(job: Job) -> list[Document]:
    settings = job.kubernetes
    if settings.service_account is not None and settings.role_arn is None:
        return []  # somebody else's
    about = metadata(job, service_account(job))
    text = (
        "The pods' identity in the cluster, and through it in AWS. It has no role here: give it one by EKS Pod Identity"
        " (an association of this name, nothing to write here), or by IRSA (kubernetes.role_arn)."
    )
    if settings.role_arn is not None:
        about["annotations"] = {_ROLE: settings.role_arn}
        text = (
            "The pods' identity in the cluster, and by IRSA in AWS: the role has to trust the cluster's OIDC provider"
            f" for system:serviceaccount:{settings.namespace}:{service_account(job)}. With EKS Pod Identity leave"
            " kubernetes.role_arn out."
        )
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about, "automountServiceAccountToken": False}
    return [Document("service-account.yaml", body, text)]


def _job(job: Job) -> Document:
    rules = [
        Why(_on_exit("Ignore", EXIT_INTERRUPTED), "Interrupted, progress saved: start it again, free of backoffLimit."),
        Why(
            _on_exit("FailJob", EXIT_CONFIG),
            "To be mended by a person: no start would do better. It stands before the rule on disruptions, so that a"
            " drain does not hide it.",
        ),
        Why(
            _on_disruption("Ignore"),
            "Evicted, preempted, or its node gone. Ignore has no bound; `unbroken run` ends with 1 itself after"
            f" {job.limits.no_progress or 5} attempts in a row that saved nothing.",
        ),
    ]
    specification: dict[str, Any] = {
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": Why(job.kubernetes.backoff_limit, "Failures alone count: interruptions are ignored below."),
        "podReplacementPolicy": _replacement(),
        "podFailurePolicy": {"rules": rules},
        "template": pod_template(job),
    }
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(job), "spec": specification}
    return Document("training.yaml", body, "The training, on one node at a time. Kubernetes 1.31 or newer.")


def _job_set(job: Job) -> Document:
    specification = {
        "network": {
            "enableDNSHostnames": True,
            "subdomain": Why(subdomain(job), "JobSet makes the headless service of this name; the nodes meet there."),
            "publishNotReadyAddresses": True,
        },
        "failurePolicy": {
            "maxRestarts": 0,
            "restartStrategy": Why("BlockingRecreate", "The old pods must be gone before new ones meet."),
            "rules": [
                Why(
                    {
                        "name": "interrupted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    },
                    "One node was interrupted (see podFailurePolicy below): the whole gang starts again, without bound."
                    " `unbroken run` ends with 1 itself when"
                    f" {job.limits.no_progress or 5} attempts in a row saved nothing.",
                ),
                Why({"name": "failed", "action": "FailJobSet"}, "Anything else: 1, or 78, which a person must mend."),
            ],
        },
        "replicatedJobs": [
            {
                "name": REPLICATED_JOB,
                "replicas": 1,
                "template": {"metadata": {"labels": labels(job)}, "spec": _gang(job)},
            }
        ],
    }
    body = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(job),
        "spec": specification,
    }
    about = (
        f"The training, on {job.ranks.nodes} nodes that start and stop together. Kubernetes 1.31 or newer, with JobSet"
        " 0.6 or newer (jobset.sigs.k8s.io)."
    )
    return Document("training.yaml", body, about)


def _gang(job: Job) -> dict[str, Any]:
    rules = [
        Why(_on_exit("FailJob", EXIT_INTERRUPTED), "Interrupted, progress saved."),
        _on_disruption("FailJob"),
    ]
    return {
        "completionMode": Why("Indexed", "Gives each node its host name."),
        "completions": job.ranks.nodes,
        "parallelism": job.ranks.nodes,
        "backoffLimit": Why(
            0,
            "A gang that lost a node cannot go on: its Job fails at once, and JobSet judges by the reason."
            " 78 has no rule of its own, for then its reason would be that of an interruption.",
        ),
        "podReplacementPolicy": _replacement(),
        "podFailurePolicy": Why(
            {"rules": rules}, "Not Ignore: one pod alone would be replaced, and wait for others that stopped with it."
        ),
        "template": pod_template(job),
    }


def _metadata(job: Job) -> dict[str, Any]:
    about = metadata(job, job.name)
    if job.kubernetes.queue is not None:
        about["labels"] = {**about["labels"], _QUEUE: job.kubernetes.queue}
    return about


def _replacement() -> Why:
    return Why("Failed", "Only when the old pod has ended: one that is still saving is not replaced.")


def _on_exit(action: str, code: int) -> dict[str, Any]:
    return {
        "action": action,
        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [code]},
    }


def _on_disruption(action: str) -> dict[str, Any]:
    return {"action": action, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
