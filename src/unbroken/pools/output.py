"""A chosen set as what the platforms are given."""

from __future__ import annotations

from typing import Any

from unbroken.pools.diversify import Chosen


def node_pool_requirements(chosen: Chosen) -> list[dict[str, Any]]:
    """Requirements of a Karpenter NodePool (v1). It may combine every type with every zone: that is all it can say."""
    offers = [each.offer for each in chosen.pools]
    return [
        _is_in("karpenter.sh/capacity-type", ["spot"]),
        _is_in("node.kubernetes.io/instance-type", [offer.instance_type for offer in offers]),
        _is_in("topology.kubernetes.io/zone", [offer.zone for offer in offers]),
    ]


def group_overrides(chosen: Chosen) -> dict[str, Any]:
    """Of an Auto Scaling group: the launch template's overrides, the cheapest first, and the zones of its subnets."""
    offers = [each.offer for each in chosen.pools]
    return {
        "Overrides": [{"InstanceType": type_} for type_ in dict.fromkeys(offer.instance_type for offer in offers)],
        "AvailabilityZones": sorted({offer.zone for offer in offers}),
    }


def job_pools(chosen: Chosen) -> list[dict[str, Any]]:
    """The field ``pools`` of a job file, with the prices of now."""
    return [
        {"instance_type": each.offer.instance_type, "zone": each.offer.zone, "price": round(each.price, 4)}
        for each in chosen.pools
    ]


def _is_in(key: str, values: list[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": sorted(set(values))}
