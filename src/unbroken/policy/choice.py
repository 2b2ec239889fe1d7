"""The policies by their names, as the command's options and the journal have them."""

from __future__ import annotations

from collections.abc import Callable

from unbroken.errors import ConfigError
from unbroken.policy.deadline import Greedy, OnDemandOnly, SafetyNet, SpotOnly, UniformProgress
from unbroken.policy.decision import Policy, Terms
from unbroken.policy.stays import StayRates

POLICIES = ("on-demand", "spot-only", "greedy", "uniform", "uniform-plain", "programme")
DEFAULT = "programme"
"""What closes most of the gap to the bound in docs/design/012-policies.md."""


def check_policy(name: str) -> None:
    """Raises:
    ConfigError: there is no such policy (kind ``policy``).
    """
    if name not in POLICIES:
        raise ConfigError(f"there is no policy {name!r}", kind="policy", hint=f"They are {', '.join(POLICIES)}")


def make_policy(name: str, terms: Terms, rates: Callable[[], StayRates]) -> Policy:
    """The policy of that name.

    Args:
        terms: with the saves in them.
        rates: asked where the policy needs them. The programme needs numpy as well, and takes some tenths of a second
            to be made.
    """
    check_policy(name)
    if name == "programme":
        from unbroken.policy.programme import Programme

        return SafetyNet(Programme(terms, rates()))
    plain: dict[str, Policy] = {
        policy.name: policy
        for policy in (OnDemandOnly(), SpotOnly(), Greedy(), UniformProgress(), UniformProgress(hysteresis=False))
    }
    return plain[name]
