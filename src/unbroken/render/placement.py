"""Where the pods may run: labels of nodes, and taints that are borne."""

from __future__ import annotations

from typing import Any

from unbroken.job import Job, Pool
from unbroken.render.yaml_text import Why

_MARKET = {
    "karpenter": ("karpenter.sh/capacity-type", {"spot": "spot", "on-demand": "on-demand"}),
    "eks": ("eks.amazonaws.com/capacityType", {"spot": "SPOT", "on-demand": "ON_DEMAND"}),
}
_GPU_NAME = {"karpenter": "karpenter.k8s.aws/instance-gpu-name"}
_GPU_NAME_OF_PLUGIN = "nvidia.com/gpu.product"
TYPE, ZONE = "node.kubernetes.io/instance-type", "topology.kubernetes.io/zone"


def markets(job: Job) -> list[str]:
    """The markets that the job may use, spot first; spot alone where it names no pool."""
    named = {pool.market for pool in job.pools} or {"spot"}
    return [market for market in ("spot", "on-demand") if market in named]


def placement(job: Job) -> dict[str, Any]:
    """The fields of a pod that say where it may run."""
    fields: dict[str, Any] = {}
    selector = _selector(job)
    if selector:
        fields["nodeSelector"] = Why(
            selector, "The market is a label of the node, not a taint: it is selected, not tolerated."
        )
    if job.pools:
        fields["affinity"] = {"nodeAffinity": _affinity(job)}
    tolerations = _tolerations(job)
    if tolerations:
        fields["tolerations"] = Why(
            tolerations,
            "Each names its key. A bare `operator: Exists` would also bear karpenter.sh/disrupted, and then the pod"
            " is not drained: no SIGTERM, no time to save.",
        )
    return fields


def _selector(job: Job) -> dict[str, str]:
    settings = job.kubernetes
    selector = dict(settings.node_selector)
    if job.resources.gpu_type is not None:
        selector.setdefault(_GPU_NAME.get(settings.provisioner, _GPU_NAME_OF_PLUGIN), job.resources.gpu_type)
    wanted = markets(job)
    if len(wanted) == 1 and settings.provisioner in _MARKET:
        key, values = _MARKET[settings.provisioner]
        selector[key] = values[wanted[0]]
    return selector


def _affinity(job: Job) -> dict[str, Any]:
    groups: dict[tuple[str, str | None], list[Pool]] = {}
    for pool in job.pools:
        groups.setdefault((pool.market, pool.zone), []).append(pool)
    terms = [{"matchExpressions": _expressions(job, pools)} for pools in groups.values()]
    affinity: dict[str, Any] = {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": Why(terms, "One term for each market and zone; a node has to match one of them.")
        }
    }
    if len(markets(job)) > 1 and job.kubernetes.provisioner in _MARKET:
        key, values = _MARKET[job.kubernetes.provisioner]
        spot = {"matchExpressions": [_in(key, [values["spot"]])]}
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = Why(
            [{"weight": 100, "preference": spot}], "Nodes on demand stand behind those on the spot market."
        )
    return affinity


def _expressions(job: Job, pools: list[Pool]) -> list[dict[str, Any]]:
    first = pools[0]
    expressions = [_in(TYPE, sorted({pool.instance_type for pool in pools}))]
    if first.zone is not None:
        expressions.append(_in(ZONE, [first.zone]))
    if len(markets(job)) > 1 and job.kubernetes.provisioner in _MARKET:
        key, values = _MARKET[job.kubernetes.provisioner]
        expressions.append(_in(key, [values[first.market]]))
    return expressions


def _in(key: str, values: list[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": values}


def _tolerations(job: Job) -> list[dict[str, str]]:
    wanted = [toleration.model_dump(exclude_none=True) for toleration in job.kubernetes.tolerations]
    gpu = {"key": job.kubernetes.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
    return [*wanted, gpu] if job.resources.gpu and gpu not in wanted else wanted
