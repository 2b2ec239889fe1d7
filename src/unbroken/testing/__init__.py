"""Failing stores, a fake metadata service and fake time: for users' tests as well as our own."""

from unbroken.testing.clock import FakeClock
from unbroken.testing.metadata import EC2MetadataService
from unbroken.testing.stores import Call, Crash, FaultyStore, flip_bit, truncate

__all__ = ["Call", "Crash", "EC2MetadataService", "FakeClock", "FaultyStore", "flip_bit", "truncate"]
