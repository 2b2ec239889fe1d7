"""What the rules are called, and what one of them found."""

from __future__ import annotations

from dataclasses import dataclass

RULES = {
    "restart-policy": "error",
    "no-pod-failure-policy": "error",
    "disruption-counted": "error",
    "interrupted-counted": "error",
    "config-retried": "warning",
    "config-replayed": "error",
    "two-writers": "warning",
    "sleeping-prestop": "error",
    "shell-pid-1": "error",
    "grace-short": "error",
    "grace-long": "warning",
    "save-too-long": "error",
    "bare-exists": "error",
    "do-not-disrupt": "error",
    "backoff-burnt": "warning",
    "small-shm": "warning",
    "no-resources": "warning",
    "memory-unequal": "warning",
    "floating-image": "warning",
    "no-spot-selector": "note",
    "unseen-exit": "note",
    "torchrun-restarts": "warning",
    "torchrun-kills": "warning",
    "torchrun-alone": "error",
    "sidecar": "warning",
    "bare-pod": "error",
    "misplaced-training": "error",
    "jobset-backoff": "error",
    "jobset-restarts": "error",
    "jobset-not-indexed": "error",
    "one-instance-type": "warning",
    "one-zone": "warning",
    "consolidation": "warning",
    "node-grace": "warning",
}
"""The id of each rule, and its severity."""


@dataclass(frozen=True)
class Finding:
    """One trap.

    Args:
        line: from 1; of the field, or of the nearest field above it where it is missing.
        path: of the field, as ``spec.template.spec.containers[0].image``.
        mended: the lines to write instead, without the indentation of their place.
    """

    rule: str
    severity: str
    file: str
    kind: str
    name: str
    path: str
    line: int
    reason: str
    mended: str
