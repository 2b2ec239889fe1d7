"""All documents of a job for Kubernetes 1.31 and newer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unbroken.errors import ConfigError
from unbroken.job import Job, Volume
from unbroken.render.access import bucket_lifecycle, iam_policy, network_policy, node_reading, pod_monitor
from unbroken.render.document import Document
from unbroken.render.nodes import node_pools, termination_handler
from unbroken.render.workload import service_account, workload
from unbroken.store import parse_uri

EXTRAS: dict[str, Callable[[Job], list[Document]]] = {
    "nodepool": node_pools,
    "nth": termination_handler,
    "rbac": node_reading,
    "networkpolicy": network_policy,
    "podmonitor": pod_monitor,
    "bucket-lifecycle": bucket_lifecycle,
    "iam-policy": iam_policy,
}
"""What is rendered on request, by the name with which it is asked for."""


def render_kubernetes(job: Job, extras: Sequence[str] = ()) -> list[Document]:
    """The service account and the Job, or the JobSet of several nodes; and what else is asked for.

    Args:
        extras: names of :data:`EXTRAS`; in any order, twice is once.

    Raises:
        ConfigError: the job lacks what one of the documents needs.
    """
    _demand_shared_store(job)
    documents = [service_account(job), workload(job)]
    for name, render in EXTRAS.items():
        if name in extras:
            documents += render(job)
    return documents


def kustomization(documents: Sequence[Document]) -> Document:
    """The list of the others, for ``kubectl apply -k``."""
    names = [document.name for document in documents if document.name.endswith(".yaml")]
    data = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": names}
    return Document("kustomization.yaml", data)


def _demand_shared_store(job: Job) -> None:
    """A folder of the container is gone with the pod."""
    place = parse_uri(job.run)
    if place.scheme != "file":
        return
    folder = place.path
    if not any(folder == volume.path or folder.startswith(f"{volume.path.rstrip('/')}/") for volume in _mounts(job)):
        raise ConfigError(
            f"the run is in the folder {folder}, which is gone with the pod", kind="run",
            hint="Mount a claim there (kubernetes: {volumes: [{claim: NAME, path: FOLDER}]}), or write run: s3://...",
        )  # fmt: skip


def _mounts(job: Job) -> list[Volume]:
    return [volume for volume in job.kubernetes.volumes if not volume.read_only]
