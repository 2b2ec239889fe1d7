"""What Kubernetes would refuse, or what would break a promise, said before anything is rendered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from unbroken.errors import ConfigError
from unbroken.job import Job

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
RESERVED = ("NODE_NAME", "POD_IP", "JOB_COMPLETION_INDEX")
"""Environment variables that the documents set themselves."""
MOUNTS = ("/tmp", "/dev/shm")  # noqa: S108 - paths in the container
"""Where the documents mount something themselves."""


def check_job(job: Job) -> None:
    """Refuse what cannot be rendered.

    Raises:
        ConfigError: names the field, what was found and what to do (kinds ``render`` and ``name``).
    """
    settings = job.kubernetes
    if job.image is None:
        raise refused("image is missing", "Name the container image: image: registry/training:1.0")
    if job.resources.memory is None:
        raise refused(
            "resources.memory is missing: the limit that holds training, arena and /dev/shm cannot be computed",
            "Write what the training itself needs on each node: resources: {memory: 64GiB, state: 20GiB}",
        )
    if job.run.startswith("file:") or "://" not in job.run:
        _check_folder(job)
    if job.grace is not None and job.grace < 1:
        raise refused(f"grace is {job.grace:g} s", "Kubernetes counts whole seconds: write 1s or more")
    if job.ranks.nodes > 1 and job.on_lost_node == "continue":
        raise refused(
            "on_lost_node is continue, and a JobSet starts the whole gang again when it loses a node",
            "Leave it out, or write on_lost_node: wait",
        )
    _check_names(job)
    _check_labels(job)
    _check_environment(job)
    _check_volumes(job)
    if _DO_NOT_DISRUPT in settings.annotations:
        raise refused(
            f"kubernetes.annotations holds {_DO_NOT_DISRUPT}, which keeps the node from being drained even at an"
            " interruption: no SIGTERM would come",
            "Leave it out; the node pools of `--with nodepool` move no training that runs",
        )


def refused(text: str, hint: str, kind: str = "render") -> ConfigError:
    """The error for a job that cannot be rendered."""
    return ConfigError(text, kind=kind, hint=hint)


def _check_folder(job: Job) -> None:
    path = job.run.removeprefix("file://")
    mounts = [volume.path.rstrip("/") for volume in job.kubernetes.volumes if not volume.read_only]
    if not any(path == mount or path.startswith(f"{mount}/") for mount in mounts):
        raise refused(
            f"run is the folder {job.run!r}, which is gone with the pod",
            "Take s3://, gs:// or az://, or a folder of a writable claim in kubernetes.volumes",
        )


def _check_names(job: Job) -> None:
    settings = job.kubernetes
    _check(_LABEL, "kubernetes.namespace", [settings.namespace])
    names = {
        "service_account": [settings.service_account] if settings.service_account else [],
        "priority_class": [settings.priority_class] if settings.priority_class else [],
        "runtime_class": [settings.runtime_class] if settings.runtime_class else [],
        "pull_secrets": settings.pull_secrets,
        "secrets": settings.secrets,
        "volumes": [volume.claim for volume in settings.volumes],
    }
    for field, values in names.items():
        _check(_SUBDOMAIN, f"kubernetes.{field}", values)
    if settings.queue is not None:
        _check(_LABEL, "kubernetes.queue", [settings.queue])
    if not _is_key(settings.gpu_resource) or "/" not in settings.gpu_resource:
        raise refused(
            f"kubernetes.gpu_resource is {settings.gpu_resource!r}", "Write domain/name: nvidia.com/gpu", "name"
        )


def _check(form: re.Pattern[str], field: str, values: Iterable[str]) -> None:
    for value in values:
        if not form.fullmatch(value):
            raise refused(f"{field} is {value!r}", "Use lower-case letters, digits and dashes, 63 at most", "name")


def _check_labels(job: Job) -> None:
    settings = job.kubernetes
    for field, labels in (("labels", settings.labels), ("node_selector", settings.node_selector)):
        check_label_map(f"kubernetes.{field}", labels)
    for key in settings.annotations:
        if not _is_key(key):
            raise refused(f"kubernetes.annotations has the key {key!r}", "Write name, or domain/name", "name")
    for toleration in settings.tolerations:
        if not _is_key(toleration.key or ""):
            raise refused(
                f"kubernetes.tolerations has the key {toleration.key!r}", "Write name, or domain/name", "name"
            )
    placed = [job.resources.gpu_type, *(pool.instance_type for pool in job.pools), *(pool.zone for pool in job.pools)]
    for value in placed:
        if value is not None and not _LABEL_NAME.fullmatch(value):
            raise refused(f"{value!r} is no value of a node's label", "Write it as the provider does", "name")


def check_label_map(field: str, labels: Mapping[str, str]) -> None:
    """Refuse keys and values that Kubernetes does not take as labels."""
    for key, value in labels.items():
        if not _is_key(key) or (value and not _LABEL_NAME.fullmatch(value)):
            raise refused(
                f"{field} has {key!r}: {value!r}, which is no label",
                "A key is name or domain/name; both parts and the value are letters, digits, '-', '_' and '.'",
                "name",
            )


def _is_key(key: str) -> bool:
    domain, slash, name = key.rpartition("/")
    return bool(_LABEL_NAME.fullmatch(name)) and (not slash or bool(_SUBDOMAIN.fullmatch(domain)))


def _check_environment(job: Job) -> None:
    for name in RESERVED:
        if name in job.env:
            raise refused(f"env sets {name}, which the documents set", "Leave it out", "name")


def _check_volumes(job: Job) -> None:
    seen = set(MOUNTS)
    for volume in job.kubernetes.volumes:
        path = volume.path.rstrip("/")
        if not path or path in seen:
            raise refused(
                f"kubernetes.volumes mounts {volume.claim!r} at {volume.path!r}, which is taken", "Choose another path"
            )
        seen.add(path)
