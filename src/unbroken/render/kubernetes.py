"""All documents of a job for Kubernetes 1.31 and newer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from unbroken.job import Job
from unbroken.render.access import network_policy, pod_monitor, rbac
from unbroken.render.bucket import bucket_lifecycle, iam_policy
from unbroken.render.checks import check_job, refused
from unbroken.render.document import Document
from unbroken.render.karpenter import node_pools
from unbroken.render.termination_handler import termination_handler
from unbroken.render.training import training
from unbroken.render.yaml_text import yaml_text


def _handler(job: Job) -> list[Document]:
    settings = job.kubernetes.termination_handler
    return termination_handler(job, settings.mode if settings else "imds")


PARTS: dict[str, Callable[[Job], list[Document]]] = {
    "nodepool": node_pools,
    "nth": _handler,
    "nth-queue": lambda job: termination_handler(job, "queue"),
    "rbac": rbac,
    "networkpolicy": network_policy,
    "podmonitor": pod_monitor,
    "bucket-lifecycle": bucket_lifecycle,
    "iam-policy": iam_policy,
}
"""What can be asked for beside the training, in the order in which it is rendered."""


def render_kubernetes(job: Job, parts: Collection[str] = (), *, with_training: bool = True) -> list[Document]:
    """The documents, always in the same order, whatever the order of ``parts``.

    Args:
        job: what to run.
        parts: keys of :data:`PARTS`.
        with_training: whether to render the training itself, and not its surroundings alone.

    Raises:
        ConfigError: the job lacks what a document needs, or would break a promise (kinds ``render``, ``name``).
    """
    if "nth" in parts and "nth-queue" in parts:
        raise refused("--with nth and --with nth-queue drain the same nodes", "Leave one of them out")
    if with_training:
        check_job(job)
    documents = training(job) if with_training else []
    return documents + [document for name, part in PARTS.items() if name in parts for document in part(job)]


def yaml_stream(documents: Sequence[Document]) -> str:
    """Kubernetes objects as one text, as ``kubectl apply -f -`` reads it."""
    return "---\n".join(document.text for document in documents)


def kustomization(documents: Sequence[Document]) -> str:
    """A ``kustomization.yaml`` that names the files of the Kubernetes objects."""
    files = [document.file for document in documents if document.in_cluster]
    return yaml_text(
        {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": files},
        "Made by `unbroken render kubernetes`. Put your changes into an overlay, so that it can be made again.",
    )
