"""The order of the data, kept with the training: what a program's data loading imports."""

from __future__ import annotations

from unbroken.training.batches import Loader
from unbroken.training.sampler import ResumableSampler

__all__ = ["Loader", "ResumableSampler"]
