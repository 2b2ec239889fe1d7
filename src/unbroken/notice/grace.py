"""The grace period: how long a machine waits between the signal to stop and the kill."""

from __future__ import annotations

import os
import re

from unbroken.clock import parse_duration
from unbroken.errors import ConfigError

GRACE_VARIABLE = "UNBROKEN_GRACE"
"""Environment variable with the grace period: seconds, or a duration such as ``90s``."""

DEFAULT_GRACE = 30.0
"""Kubernetes' default ``terminationGracePeriodSeconds``."""

_PLAIN_SECONDS = re.compile(r"\d+(\.\d+)?")


def grace_from(text: str | None = None) -> float:
    """The grace period in seconds: from ``text``, else from ``UNBROKEN_GRACE``, else the default.

    Raises:
        ConfigError: it is neither a number of seconds nor a duration, or not positive.
    """
    text = (text or os.environ.get(GRACE_VARIABLE, "")).strip()
    if not text:
        return DEFAULT_GRACE
    if not _PLAIN_SECONDS.fullmatch(text):
        return parse_duration(text)
    if float(text) <= 0:
        raise ConfigError(f"the grace period {text!r} is not positive", kind="duration", hint="Write seconds, as 90")
    return float(text)


WARNING_VARIABLE = "UNBROKEN_WARNING"
"""Environment variable with the time from SIGUSR1 to the end: seconds, or a duration such as ``2min``."""

DEFAULT_WARNING = 60.0
"""Slurm's default for ``--signal``."""


def warning_from() -> float:
    """The seconds from SIGUSR1, an advance warning, to the end: from ``UNBROKEN_WARNING``, else the default.

    Raises:
        ConfigError: it is neither a number of seconds nor a duration, or not positive.
    """
    text = os.environ.get(WARNING_VARIABLE, "").strip()
    return grace_from(text) if text else DEFAULT_WARNING


LEAD_VARIABLE = "UNBROKEN_NOTICE_LEAD"
"""Environment variable with the time before its deadline from which a notice stops the training."""

DEFAULT_LEAD = 180.0


def lead_from() -> float:
    """The seconds before its deadline from which a notice stops the training, and until which it is an advisory.

    Raises:
        ConfigError: it is neither a number of seconds nor a duration, or not positive.
    """
    text = os.environ.get(LEAD_VARIABLE, "").strip()
    return grace_from(text) if text else DEFAULT_LEAD
