"""The traps in a user's own Kubernetes manifests: text in, findings out; nothing is run or asked of a cluster."""

from __future__ import annotations

from unbroken.lint.finding import RULES, Finding
from unbroken.lint.manifest import KINDS, count_known, lint_text

__all__ = ["KINDS", "RULES", "Finding", "count_known", "lint_text"]
