"""Failing stores, fake metadata services and fake time: for users' tests as well as our own."""

from unbroken.testing.clock import FakeClock
from unbroken.testing.metadata import EC2MetadataService
from unbroken.testing.metadata_azure import AzureMetadataService
from unbroken.testing.metadata_gcp import GCPMetadataService
from unbroken.testing.metadata_kubernetes import KubernetesNodeService
from unbroken.testing.stores import Call, Crash, FaultyStore, flip_bit, truncate

__all__ = [
    "AzureMetadataService",
    "Call",
    "Crash",
    "EC2MetadataService",
    "FakeClock",
    "FaultyStore",
    "GCPMetadataService",
    "KubernetesNodeService",
    "flip_bit",
    "truncate",
]
