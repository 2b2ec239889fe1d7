"""On which nodes the pods may run."""

from __future__ import annotations

from typing import Any

from unbroken.job import Job, Pool

_MARKETS = {
    "karpenter": ("karpenter.sh/capacity-type", {"spot": "spot", "on-demand": "on-demand"}),
    "eks": ("eks.amazonaws.com/capacityType", {"spot": "SPOT", "on-demand": "ON_DEMAND"}),
}
TYPE = "node.kubernetes.io/instance-type"
ZONE = "topology.kubernetes.io/zone"
_GPU = {"karpenter": "karpenter.k8s.aws/instance-gpu-name"}
_GPU_OF_PLUGIN = "nvidia.com/gpu.product"


def node_selector(job: Job) -> dict[str, str]:
    """Labels that every node must have: with pools the market is part of their terms."""
    selector = dict(job.kubernetes.node_selector)
    if job.resources.gpu_type is not None:
        selector[_GPU.get(job.kubernetes.provisioner, _GPU_OF_PLUGIN)] = job.resources.gpu_type
    label, names = _MARKETS.get(job.kubernetes.provisioner, ("", {}))
    if label and not job.pools:
        selector[label] = names["spot"]
    return selector


def affinity(job: Job) -> dict[str, Any] | None:
    """One term for each pool, of which a node must fulfil one; spot first where there is both."""
    if not job.pools:
        return None
    node: dict[str, Any] = {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": _term(job, pool)} for pool in job.pools]
        }
    }
    label, names = _MARKETS.get(job.kubernetes.provisioner, ("", {}))
    if label and len({pool.market for pool in job.pools}) > 1:
        preference = {"matchExpressions": [_is_in(label, names["spot"])]}
        node["preferredDuringSchedulingIgnoredDuringExecution"] = [{"weight": 100, "preference": preference}]
    return {"nodeAffinity": node}


def _term(job: Job, pool: Pool) -> list[dict[str, Any]]:
    term = [_is_in(TYPE, pool.instance_type)]
    if pool.zone is not None:
        term.append(_is_in(ZONE, pool.zone))
    if job.kubernetes.provisioner in _MARKETS:
        label, names = _MARKETS[job.kubernetes.provisioner]
        term.append(_is_in(label, names[pool.market]))
    return term


def _is_in(key: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": list(values)}
