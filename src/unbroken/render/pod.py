"""The pod of a training."""

from __future__ import annotations

from typing import Any

from unbroken.errors import ConfigError
from unbroken.job import Job, Volume
from unbroken.render.command import GRACE, container_command, environment, grace_of
from unbroken.render.document import Path
from unbroken.render.placement import affinity, node_selector

CONTAINER = "trainer"
AGENT_BYTES = 256 << 20
"""Host memory of the agent, or of the reading threads of a restore."""
_KEPT_BACK = 256 << 20
"""What staging leaves to others, besides a tenth of the state: with less it makes one copy only."""
_MEBIBYTE = 1 << 20
_DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"


def labels_of(job: Job) -> dict[str, str]:
    """What every object of the job is marked with."""
    return {
        **job.kubernetes.labels,
        "app.kubernetes.io/name": job.name,
        "app.kubernetes.io/managed-by": "unbroken",
    }


def service_account_of(job: Job) -> str:
    return job.kubernetes.service_account or job.name


def pod_template(job: Job) -> dict[str, Any]:
    """Metadata and spec of the pods.

    Raises:
        ConfigError: the job lacks what a pod needs.
    """
    settings = job.kubernetes
    metadata: dict[str, Any] = {"labels": labels_of(job)}
    if _DO_NOT_DISRUPT in settings.annotations:
        raise ConfigError(
            f"kubernetes.annotations has {_DO_NOT_DISRUPT}: the node would not be drained even at an interruption, "
            "and no SIGTERM would come", kind="annotations", hint="Leave it out; node pools move no training that runs",
        )  # fmt: skip
    if settings.annotations:
        metadata["annotations"] = dict(settings.annotations)
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_of(job),
        "serviceAccountName": service_account_of(job),
        "automountServiceAccountToken": settings.read_node,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": settings.user, "runAsGroup": settings.user, "fsGroup": settings.user,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
    }  # fmt: skip
    optional = {
        "nodeSelector": node_selector(job),
        "affinity": affinity(job),
        "tolerations": _tolerations(job),
        "priorityClassName": settings.priority_class,
        "runtimeClassName": settings.runtime_class,
        "imagePullSecrets": [{"name": name} for name in settings.pull_secrets],
    }
    spec |= {key: value for key, value in optional.items() if value}
    spec["containers"] = [_container(job)]
    spec["volumes"] = _volumes(job)
    return {"metadata": metadata, "spec": spec}


def pod_comments(job: Job, at: Path) -> dict[Path, str]:
    """Why some lines of the template at ``at`` stand there."""
    spec: Path = (*at, "spec")
    container: Path = (*spec, "containers", 0)
    found: dict[Path, str] = {
        (*spec, "restartPolicy"): "A pod that goes on elsewhere is a new one; podFailurePolicy works with Never alone.",
        (*spec, "terminationGracePeriodSeconds"): f"From SIGTERM to SIGKILL. Of EC2's 120 s about {GRACE:g} are left "
        "once the pod is evicted; the training must have saved by then.",
        (*container, "command"): "No shell: process 1 is the agent, which hears SIGTERM, has the training save, and "
        "leaves with 75 when it was interrupted, 0 when the training is finished. There is no preStop hook: it would "
        "eat the grace period before SIGTERM is sent.",
        (*container, "resources"): _memory_reason(job),
    }
    if "nodeSelector" in (spec_data := pod_template(job)["spec"]) or "affinity" in spec_data:
        where = "nodeSelector" if "nodeSelector" in spec_data else "affinity"
        found[*spec, where] = (
            "The market is a label of the nodes, not a taint: no toleration is needed for spot, and none here swallows "
            "karpenter.sh/disrupted, which announces an interruption."
        )
    return found


def _tolerations(job: Job) -> list[dict[str, Any]]:
    given = [one.model_dump(exclude_none=True) for one in job.kubernetes.tolerations]
    gpu = {"key": job.kubernetes.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
    return given + ([gpu] if job.resources.gpu and gpu["key"] not in [one.get("key") for one in given] else [])


def _container(job: Job) -> dict[str, Any]:
    if job.image is None:
        raise ConfigError("image is missing: pods need one", kind="image", hint="Write image: NAME:TAG")
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": job.image,
        "command": container_command(job),
        "env": environment(job),
    }
    if job.kubernetes.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in job.kubernetes.secrets]
    if job.kubernetes.metrics_port is not None:
        container["ports"] = [{"name": "metrics", "containerPort": job.kubernetes.metrics_port}]
    return container | {
        "resources": _resources(job),
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - the path in the container
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            *(
                {"name": f"volume-{number}", "mountPath": volume.path, **_read_only(volume)}
                for number, volume in enumerate(job.kubernetes.volumes)
            ),
        ],
    }  # fmt: skip


def _resources(job: Job) -> dict[str, Any]:
    """Requests and limits. Memory is the same in both: what a save needs is there when the notice comes."""
    memory = f"{-(-_memory(job) // _MEBIBYTE)}Mi"
    requests: dict[str, Any] = {"memory": memory, "ephemeral-storage": _quantity(job.resources.scratch)}
    limits: dict[str, Any] = {"memory": memory}
    if job.resources.cpu is not None:
        requests = {"cpu": f"{job.resources.cpu:g}"} | requests
    if job.resources.gpu:
        limits[job.kubernetes.gpu_resource] = job.resources.gpu
    return {"requests": requests, "limits": limits}


def _memory(job: Job) -> int:
    resources = job.resources
    if resources.memory is None:
        raise ConfigError(
            "resources.memory is missing: a pod needs a limit that leaves room for a save", kind="memory",
            hint="Write what the training itself takes, such as memory: 32GiB; room for state and shm is added",
        )  # fmt: skip
    return resources.memory + _staging(resources.state) + resources.shm + AGENT_BYTES


def _staging(state: int | None) -> int:
    return _KEPT_BACK + (0 if state is None else 2 * state + -(-state // 10))


def _memory_reason(job: Job) -> str:
    parts = [f"{_quantity(job.resources.memory or 0)} for the training"]
    if job.resources.state:
        parts.append(
            f"two copies of {_quantity(job.resources.state)} of state, which is saved from host memory, and a "
            "tenth of it to spare"
        )
    parts += [
        f"{_quantity(job.resources.shm)} of /dev/shm",
        f"{_quantity(AGENT_BYTES + _KEPT_BACK)} for the agent and others",
    ]
    more = "" if job.resources.state else " The size of the state was not given (resources.state): saves may be slower."
    return f"Memory: {', '.join(parts)}. Request and limit are one, so that it is there when a notice comes.{more}"


def _quantity(size: int) -> str:
    for name, unit in (("Gi", 1 << 30), ("Mi", 1 << 20)):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{-(-size // _MEBIBYTE)}Mi"


def _volumes(job: Job) -> list[dict[str, Any]]:
    return [
        {"name": "scratch", "emptyDir": {"sizeLimit": _quantity(job.resources.scratch)}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _quantity(job.resources.shm)}},
        *(
            {
                "name": f"volume-{number}",
                "persistentVolumeClaim": {"claimName": volume.claim, **_read_only(volume)},
            }
            for number, volume in enumerate(job.kubernetes.volumes)
        ),
    ]


def _read_only(volume: Volume) -> dict[str, bool]:
    return {"readOnly": True} if volume.read_only else {}
