"""The pod that trains."""

from __future__ import annotations

from typing import Any

from unbroken.job import Job
from unbroken.render.command import container_command, environment, grace_seconds
from unbroken.render.placement import placement
from unbroken.render.yaml_text import Why

_MI = 1024**2
_NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
CONTAINER = "training"


def labels(job: Job) -> dict[str, str]:
    """Of every object: the job's own, and ours, by which others find it."""
    ours = {_NAME: "training", INSTANCE: job.name, "app.kubernetes.io/managed-by": "unbroken"}
    return {**job.kubernetes.labels, **ours}


def selector(job: Job) -> dict[str, Any]:
    """Finds the pods of this job alone, within its namespace."""
    return {"matchLabels": {_NAME: "training", INSTANCE: job.name}}


def metadata(job: Job, name: str, *, namespaced: bool = True) -> dict[str, Any]:
    """Name, namespace and labels of an object."""
    place = {"namespace": job.kubernetes.namespace} if namespaced else {}
    return {"name": name, **place, "labels": labels(job)}


def service_account(job: Job) -> str:
    """Name of the pods' service account."""
    return job.kubernetes.service_account or job.name


def pod_template(job: Job) -> dict[str, Any]:
    """Labels and specification of the pod."""
    settings = job.kubernetes
    about: dict[str, Any] = {"labels": labels(job)}
    if settings.annotations:
        about["annotations"] = dict(settings.annotations)
    return {"metadata": about, "spec": _pod(job)}


def memory_bytes(job: Job) -> int:
    """The pod's memory: the training, two slots of arena for what a node saves, and /dev/shm."""
    resources = job.resources
    return (resources.memory or 0) + 2 * (resources.state or 0) + resources.shm


def quantity(size: int) -> str:
    """Bytes as a quantity, rounded up to whole MiB."""
    return f"{-(-size // _MI)}Mi"


def _pod(job: Job) -> dict[str, Any]:
    settings = job.kubernetes
    optional = {
        "priorityClassName": settings.priority_class,
        "runtimeClassName": settings.runtime_class,
        "imagePullSecrets": [{"name": name} for name in settings.pull_secrets] or None,
    }
    return {
        "restartPolicy": Why(
            "Never", "podFailurePolicy needs it: each start is a pod of its own, whose end the Job can judge."
        ),
        "terminationGracePeriodSeconds": Why(
            grace_seconds(job),
            "The agent is told the same. About 100: of EC2's 120 s some are gone when the drain begins.",
        ),
        "serviceAccountName": service_account(job),
        "automountServiceAccountToken": settings.read_node,
        "enableServiceLinks": False,
        **{name: value for name, value in optional.items() if value is not None},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.user,
            "runAsGroup": settings.user,
            "fsGroup": settings.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **placement(job),
        "containers": [_container(job)],
        "volumes": _volumes(job),
    }


def _container(job: Job) -> dict[str, Any]:
    settings = job.kubernetes
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": job.image,
        "command": Why(
            container_command(job),
            "Exec form: `unbroken run` is process 1, hears SIGTERM itself and reaps what is left behind. A shell in"
            " front would swallow the signal.\n"
            "No preStop hook: it runs before SIGTERM and eats the grace period.",
        ),
        "env": environment(job),
        "resources": _resources(job),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(job),
    }
    if not container["env"]:
        del container["env"]
    if settings.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in settings.secrets]
    if settings.metrics_port is not None:
        container["ports"] = [{"name": "metrics", "containerPort": settings.metrics_port}]
    return container


def _resources(job: Job) -> dict[str, Any]:
    resources = job.resources
    requests: dict[str, Any] = {}
    if resources.cpu is not None:
        requests["cpu"] = f"{max(1, round(resources.cpu * 1000))}m"
    requests["memory"] = quantity(memory_bytes(job))
    requests["ephemeral-storage"] = quantity(resources.scratch)
    limits: dict[str, Any] = {"memory": Why(requests["memory"], _memory_reason(job))}
    if resources.gpu:
        requests[job.kubernetes.gpu_resource] = limits[job.kubernetes.gpu_resource] = str(resources.gpu)
    return {"requests": requests, "limits": limits}


def _memory_reason(job: Job) -> str:
    resources = job.resources
    parts = f"{quantity(resources.memory or 0)} for the training + {quantity(resources.shm)} for /dev/shm"
    if resources.state is None:
        arena = (
            "resources.state is not said, so the arena, twice what a node saves, is not counted: a save can then"
            " bring the pod to its limit."
        )
    else:
        parts += f" + 2 x {quantity(resources.state)} for the arena"
        arena = "The arena is anonymous memory and counts against this limit."
    return f"{parts}; the same as requested, so that a full node does not choose this pod to kill.\n{arena}"


def _mounts(job: Job) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the container's
        {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108
    ]
    for index, volume in enumerate(job.kubernetes.volumes):
        mount: dict[str, Any] = {"name": f"claim-{index}", "mountPath": volume.path}
        mounts.append({**mount, "readOnly": True} if volume.read_only else mount)
    return mounts


def _volumes(job: Job) -> list[Any]:
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": quantity(job.resources.shm)}}
    volumes: list[Any] = [
        Why(shm, "Without it /dev/shm has 64 MiB, which DataLoader workers and NCCL soon fill."),
        {"name": "scratch", "emptyDir": {"sizeLimit": quantity(job.resources.scratch)}},
    ]
    for index, volume in enumerate(job.kubernetes.volumes):
        claim: dict[str, Any] = {"claimName": volume.claim}
        if volume.read_only:
            claim["readOnly"] = True
        volumes.append({"name": f"claim-{index}", "persistentVolumeClaim": claim})
    return volumes
