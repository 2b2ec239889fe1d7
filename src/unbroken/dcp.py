"""A run's store for ``torch.distributed.checkpoint``: what programs pass to ``dcp.save`` and ``dcp.load``."""

from __future__ import annotations

from unbroken.training.dcp_reader import Reader
from unbroken.training.dcp_writer import Writer

__all__ = ["Reader", "Writer"]
