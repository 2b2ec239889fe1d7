"""Values that are no tensors, as load planners of torch.distributed.checkpoint want them: pickled, in memory alone."""

from __future__ import annotations

import io
from typing import Any

import torch


def as_planners_read_it(value: Any) -> io.BytesIO:
    """A file in memory that ``LoadPlanner.load_bytes`` turns back into the value. It never leaves the process."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file
