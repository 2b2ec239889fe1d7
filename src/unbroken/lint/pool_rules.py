"""What a Karpenter NodePool does to trainings."""

from __future__ import annotations

from unbroken.lint.look import Look
from unbroken.lint.reading import Path

_SINGLE = (
    ("node.kubernetes.io/instance-type", "one-instance-type", "With one instance type, one shortage stops everything"),
    ("topology.kubernetes.io/zone", "one-zone", "With one zone, one shortage stops everything"),
)


def pool_rules(look: Look) -> None:
    """Look at a NodePool."""
    spec = ("spec", "template", "spec")
    singles = () if _is_on_demand(look, spec) else _SINGLE
    for path, need in look.each(*spec, "requirements"):
        values = need.get("values")
        for key, rule, why in singles:
            if need.get("key") == key and need.get("operator") == "In" and isinstance(values, list) and len(values) < 2:
                known = str(values[0]) if values else "FIRST"
                look.add(rule, (*path, "values"), why, f"values: [{known}, ANOTHER]")
    policy = ("spec", "disruption", "consolidationPolicy")
    if look.get(*policy) != "WhenEmpty":
        why = "Consolidation takes machines from trainings to save a little; each time costs a restart"
        look.add("consolidation", policy, why, "consolidationPolicy: WhenEmpty")
    if look.get(*spec, "terminationGracePeriod") is None:
        why = "A pod that blocks its eviction holds the drain until the machine is gone, and never hears SIGTERM"
        look.add("node-grace", (*spec, "terminationGracePeriod"), why, "terminationGracePeriod: 110s")


def _is_on_demand(look: Look, spec: Path) -> bool:
    """Whether it has no spot at all: who waits behind others may be alone."""
    return any(
        need.get("key") == "karpenter.sh/capacity-type" and need.get("values") == ["on-demand"]
        for _, need in look.each(*spec, "requirements")
    )
